"""Standardise the weights of each slot to mean 0 and deviation 1, and undo it after decoding.

Each slot's weight and bias are standardised separately. Mean and deviation carry information: every
token of the slot has them as side information, four numbers (asinh(mean / s), log s) of weight and bias,
so that they are encoded, predicted and sampled too (docs/explanation/sane.md, sections 2.1 and 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.rounding import widened

SIDE = 4  # numbers of side information per token
_MIN_DEVIATION = 1e-12
_CHUNK_SIZE = 2**17  # values converted to float64 at a time
_Transform = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Scale(ShortRepr):
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


def fit_scale(graph: WeightGraph) -> Scale:
    """Measure mean and deviation of each slot's weight and bias; a constant tensor has deviation 1."""
    rows = [slot_scale(*(graph.tensors[p.key] for p in slot.params)) for slot in graph.slots]
    return Scale(torch.cat([row.mean for row in rows]), torch.cat([row.deviation for row in rows]))


def slot_scale(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Scale:
    """Measure one slot: means and deviations (1, 2)."""
    moments = torch.tensor([[_moments(weight), _moments(bias)]], dtype=torch.float64).float()
    return Scale(moments[..., 0], moments[..., 1])


def apply_scale(graph: WeightGraph, scale: Scale) -> WeightGraph:
    """Return the network with each tensor standardised to mean 0 and deviation 1."""
    return _transform_slots(graph, scale, lambda x, mean, deviation: (x - mean) / deviation)


def undo_scale(graph: WeightGraph, scale: Scale) -> WeightGraph:
    """Return the network with its scale restored; the inverse of `apply_scale` up to rounding."""
    return _transform_slots(graph, scale, lambda x, mean, deviation: x * deviation + mean)


def _moments(tensor: torch.Tensor | None) -> tuple[float, float]:
    """Return mean and deviation, combined from chunks that fit into a cache (Chan et al. 1982)."""
    if tensor is None:
        return 0.0, 1.0
    size, mean, squares = 0, 0.0, 0.0
    for chunk in tensor.detach().reshape(-1).split(_CHUNK_SIZE):
        x = chunk.double()
        chunk_mean = x.mean().item()
        x = x - chunk_mean
        delta, count_before, size = chunk_mean - mean, size, size + len(x)
        mean += delta * len(x) / size
        squares += x.dot(x).item() + delta * delta * len(x) * count_before / size
    deviation = (squares / size) ** 0.5
    return mean, 1.0 if deviation <= _MIN_DEVIATION else deviation


def _transform_slots(graph: WeightGraph, scale: Scale, transform: _Transform) -> WeightGraph:
    tensors: dict[str, torch.Tensor] = {}
    for i, slot in enumerate(graph.slots):
        for j, param in enumerate(slot.params):
            tensor = widened(graph.tensors[param.key])
            statistics = scale.mean[i, j], scale.deviation[i, j]
            tensors[param.key] = transform(
                tensor, *(x.to(tensor.device, tensor.dtype) for x in statistics)
            )
    return graph.replace(tensors)
