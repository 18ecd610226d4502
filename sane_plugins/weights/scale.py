"""The scale of every slot, divided out before the autoencoder and put back after it.

Each slot's weight and bias are standardised on their own. What was divided out is information: it
rides with every token of the slot as four numbers, `side` (asinh(mean / s), log s) of weight and bias,
so that it is encoded, predicted and sampled too (spec section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sane_plugins.weights.graph import Param, WeightGraph
from sane_plugins.weights.tokens import slots

SIDE = 4
_TINY = 1e-12
_Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Scale:
    """Means and deviations, (M, 2) each: M slots, weight and bias (0 and 1 where there is no bias)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @property
    def side(self) -> torch.Tensor:
        """Return the side information (M, 4) that is encoded with the tokens."""
        ratio, log = torch.asinh(self.mean / self.deviation), self.deviation.log()
        return torch.stack([ratio[:, 0], log[:, 0], ratio[:, 1], log[:, 1]], dim=1)

    @classmethod
    def from_side(cls, side: torch.Tensor) -> Scale:
        """Return the scale that has this side information (M, 4); the inverse of `side`."""
        deviation = side[:, 1::2].exp()
        return cls(side[:, 0::2].sinh() * deviation, deviation)


def fit(graph: WeightGraph) -> Scale:
    """Measure mean and deviation of each slot's weight and bias; a constant tensor has deviation 1."""
    pairs = [[_moments(graph, slot.weight), _moments(graph, slot.bias)] for slot in slots(graph)]
    both = torch.tensor(pairs, dtype=torch.float64).float()
    return Scale(both[..., 0], both[..., 1])


def apply(graph: WeightGraph, scale: Scale) -> WeightGraph:
    """Return the network with each tensor standardised to mean 0 and deviation 1."""
    return _mapped(graph, scale, lambda x, mean, deviation: (x - mean) / deviation)


def undo(graph: WeightGraph, scale: Scale) -> WeightGraph:
    """Return the network with its scale put back; the inverse of `apply` up to rounding."""
    return _mapped(graph, scale, lambda x, mean, deviation: x * deviation + mean)


def _moments(graph: WeightGraph, param: Param | None) -> tuple[float, float]:
    if param is None:
        return 0.0, 1.0
    tensor = graph.tensors[param.key].double()
    deviation = tensor.std(correction=0).item()
    return tensor.mean().item(), deviation if deviation > _TINY else 1.0


def _mapped(graph: WeightGraph, scale: Scale, change: _Change) -> WeightGraph:
    tensors: dict[str, torch.Tensor] = {}
    for i, slot in enumerate(slots(graph)):
        for j, param in enumerate((slot.weight, slot.bias)):
            if param is not None:
                tensor, at = graph.tensors[param.key], (scale.mean[i, j], scale.deviation[i, j])
                tensors[param.key] = change(
                    tensor, *(x.to(tensor.device, tensor.dtype) for x in at)
                )
    return graph.replace(tensors)
