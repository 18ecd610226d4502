"""Which tensor of one network is compared with which of the other.

Content decides. Where it says nothing, as of layers that were trained anew, equal names do, and then place
and shape.
The method: docs/explanation/sane.md, section 21.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from sane_plugins.comparison.vector_votes import vector_votes
from sane_plugins.fingerprints import NetworkFingerprint, fingerprint, match_layers
from sane_plugins.progress import Report
from sane_plugins.weights import Layer, Param, WeightGraph

_KNOWN = 0.5  # likeness above which content alone says that two matrices belong together


@dataclass(frozen=True, kw_only=True)
class PairedTensors:
    """A tensor of each network."""

    a: Param
    b: Param


def pair_tensors(a: WeightGraph, b: WeightGraph, report: Report) -> tuple[PairedTensors, ...]:
    """Pair the tensors of two networks, in the order of the first."""
    prints = [fingerprint(_finite(graph), report) for graph in (a, b)]
    found = match_layers(*prints)
    likeness = {(pair.a, pair.b): 1 - pair.distance for pair in found.pairs}
    pairs = _Pairs(a, b)
    pairs.add_matrices(likeness)
    pairs.add_vectors_beside_matrices()
    pairs.add_vectors_by_layer(prints, likeness)
    pairs.add_rest(likeness)
    params_b = {p.key: p for p in b.params}
    return tuple(
        PairedTensors(a=param, b=params_b[pairs.partners[param.key]])
        for param in a.params
        if param.key in pairs.partners
    )


class _Pairs:
    """The partner in the second network of each tensor of the first, as far as it was found."""

    def __init__(self, a: WeightGraph, b: WeightGraph) -> None:
        self.partners: dict[str, str] = {}
        self._taken: set[str] = set()
        self._params = tuple({p.key: p for p in graph.params} for graph in (a, b))
        self._owners = (_owners(a), _owners(b))

    def add_matrices(self, likeness: Mapping[tuple[str, str], float]) -> None:
        """Pair matrices: those known by content, then those of one name, then the rest as it was found."""
        params_a, params_b = self._params
        matrices = {pair: x for pair, x in likeness.items() if len(params_a[pair[0]].shape) > 1}
        for (one, other), alike in matrices.items():
            if alike > _KNOWN:
                self._add(one, other)
        for key, param in params_a.items():
            same = params_b.get(key)
            if same and len(param.shape) > 1 and len(same.shape) == len(param.shape):
                self._add(key, key)
        for one, other in matrices:
            self._add(one, other)

    def add_vectors_beside_matrices(self) -> None:
        """Pair the vectors of layers whose matrices are paired, by role and size."""
        for one, other in [*self.partners.items()]:
            self._add_by_role(self._owners[0][one], self._owners[1][other])

    def add_vectors_by_layer(
        self, prints: Sequence[NetworkFingerprint], near: Iterable[tuple[str, str]]
    ) -> None:
        """Pair layers of vectors, such as norms, as wholes: those that most of their tensors speak for."""
        used = (self.partners.keys(), self._taken)
        free = [
            [x for x in whole.tensors if not x.is_matrix and x.key not in own]
            for whole, own in zip(prints, used, strict=True)
        ]
        keys = [{x.key for x in own} for own in free]
        beside = [pair for pair in near if pair[0] in keys[0] and pair[1] in keys[1]]
        votes = vector_votes((free[0], free[1]), self._owners, beside)
        layers = [{x.name: x for x in owners.values()} for owners in self._owners]
        done: tuple[set[str], set[str]] = (set(), set())
        for one, other in sorted(votes, key=lambda pair: (-votes[pair], pair)):
            is_free = one not in done[0] and other not in done[1]
            if is_free and self._add_by_role(layers[0][one], layers[1][other]):
                done[0].add(one)
                done[1].add(other)

    def add_rest(self, likeness: Mapping[tuple[str, str], float]) -> None:
        """Pair what is left: what has one name, such as norms of another width, and then as it was found."""
        for key in self._params[0].keys() & self._params[1].keys():
            if len({len(params[key].shape) for params in self._params}) == 1:
                self._add(key, key)
        for one, other in likeness:
            self._add(one, other)

    def _add_by_role(self, one: Layer, other: Layer) -> bool:
        found = [*self._of_one_role(one, other)]
        for pair in found:
            self._add(*pair)
        return bool(found)

    def _of_one_role(self, one: Layer, other: Layer) -> Iterator[tuple[str, str]]:
        """Yield the free vectors of two layers that have the same role and size."""
        free = [p for p in other.params if p.key not in self._taken and len(p.shape) < 2]
        for param in one.params:
            if param.key in self.partners or len(param.shape) > 1:
                continue
            fitting = [x for x in free if x.role == param.role and x.size == param.size]
            if fitting:
                free.remove(fitting[0])
                yield param.key, fitting[0].key

    def _add(self, one: str, other: str) -> None:
        if one not in self.partners and other not in self._taken:
            self.partners[one] = other
            self._taken.add(other)


def _owners(graph: WeightGraph) -> dict[str, Layer]:
    """Return the layer of each tensor: the first that has it."""
    return {p.key: layer for layer in reversed(graph.layers) for p in layer.params}


def oriented(tensor: torch.Tensor, param: Param) -> torch.Tensor:
    """Return a tensor as (output channels, input channels, places of a kernel), a vector as it is."""
    tensor = tensor.detach()
    if tensor.ndim < 2:
        return tensor.reshape(-1)
    moved = tensor.movedim(param.axis, 0)
    return moved.reshape(*moved.shape[:2], prod(moved.shape[2:]))


def oriented_shape(param: Param) -> tuple[int, ...]:
    """Return the shape of an oriented tensor without reading it."""
    if len(param.shape) < 2:
        return (param.size,)
    rest = [size for axis, size in enumerate(param.shape) if axis != param.axis % len(param.shape)]
    return (param.shape[param.axis], rest[0], prod(rest[1:]))


def _finite(graph: WeightGraph) -> WeightGraph:
    """Return a network to take fingerprints of, with 0 for what is not finite."""
    return replace(graph, tensors=_FiniteTensors(graph.tensors))


class _FiniteTensors(Mapping[str, torch.Tensor]):
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._tensors[key].detach()
        if not tensor.is_floating_point():
            return tensor
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        return values if bool(values.isfinite().all()) else values.nan_to_num(0.0, 0.0, 0.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
