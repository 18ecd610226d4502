"""A network in another floating-point type: rounded, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from sane_plugins.errors import SourceError
from sane_plugins.weights import StoredState, WeightGraph, rounded_to


@dataclass(frozen=True)
class Rounding:
    """How many tensors changed with their type, and the largest change of a value."""

    tensors: int = 0
    largest: float = 0.0


def with_dtype(graph: WeightGraph, dtype: torch.dtype) -> tuple[WeightGraph, Rounding]:
    """Return the network with its weights in another floating-point type, and what rounding did to them.

    Settings, counters and tables stay as they are. Every tensor is read once. Raises `SourceError` where a
    value is beyond the type.
    """
    kept = [key for key in graph.untouched if key in graph.tensors]
    stored = graph.stored_state()
    state = replace(stored, tensors=_InType(graph.source, stored.tensors, dtype, kept))
    layers = tuple(
        replace(layer, params=tuple(replace(param, dtype=dtype) for param in layer.params))
        for layer in graph.layers
    )
    changed = replace(
        graph,
        layers=layers,
        tensors=_InType(graph.source, graph.tensors, dtype, kept),
        stored_form=None if graph.stored_form is None else lambda _: state,
    )
    return changed, _rounding(stored, state)


def _rounding(before: StoredState, after: StoredState) -> Rounding:
    count, largest = 0, 0.0
    for key, tensor in before.tensors.items():
        rounded = after.tensors[key]
        if rounded.dtype == tensor.dtype or not tensor.numel():
            continue
        change = float((rounded.double() - tensor.double()).abs().nan_to_num(0.0, 0.0).max())
        count, largest = count + (change > 0), max(largest, change)
    return Rounding(count, largest)


class _InType(Mapping[str, torch.Tensor]):
    """Tensors that are rounded on access, save those that are `kept`."""

    def __init__(
        self,
        source: str,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        kept: Collection[str],
    ) -> None:
        self._source, self._tensors, self._dtype, self._kept = source, tensors, dtype, {*kept}

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._tensors[key]
        if key in self._kept or not tensor.is_floating_point():
            return tensor
        rounded = rounded_to(tensor, self._dtype)
        if rounded is None:
            name = str(self._dtype).removeprefix("torch.")
            raise SourceError(
                f"{self._source}, '{key}'",
                f"some of its values are beyond {name}",
                "rounding is all that a change of type may do",
                "choose a wider type, such as bfloat16 or float32",
            )
        return rounded

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
