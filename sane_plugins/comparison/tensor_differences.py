"""How each pair of tensors differs: as it is stored, or with channels brought into one order.

The method: docs/explanation/sane.md, section 21.1.

Legend: N values, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log, sqrt, tanh

import torch

from sane_plugins.comparison.aligned_channels import Axes, ChannelAlignment
from sane_plugins.comparison.difference import TensorDifference
from sane_plugins.comparison.pair_sums import PairSums
from sane_plugins.comparison.paired_tensors import PairedTensors, oriented, oriented_shape
from sane_plugins.comparison.relation import Relation, relate
from sane_plugins.symmetry import PermutationGroup, permutation_groups
from sane_plugins.weights import Param, WeightGraph

_CHANCE = 0.15  # correlation of strangers that look alike, as kernels of one size do
_DEVIATIONS = 5.0  # of the correlation of independent values
_ALIKE = 0.5  # correlation above which channels stand in one order already
_SEARCHED = 1.5  # times what assigning channels gives to strangers
_UNSEEN = Relation(change="replaced", distance=None, cosine=None, correlation=None)


def difference_as_stored(a: WeightGraph, b: WeightGraph, pair: PairedTensors) -> TensorDifference:
    """Return how two tensors differ with channels as they stand, or with rows and columns exchanged."""
    shape, other = oriented_shape(pair.a), oriented_shape(pair.b)
    may_turn = len(shape) == len(other) == 3 and shape == (other[1], other[0], other[2])
    if shape != other and not may_turn:
        return TensorDifference(a=pair.a, b=pair.b, relation=_UNSEEN)
    x, y, chance = _read(a, pair.a), _read(b, pair.b), _chance(pair.a.size)
    plain = TensorDifference(a=pair.a, b=pair.b, relation=_UNSEEN)
    if shape == other:
        plain = replace(plain, relation=relate(x, y, chance, PairSums.of(x, y)))
    if not may_turn or plain.relation.change != "replaced":
        return plain
    turned = replace(plain, relation=relate(x, y.transpose(0, 1), chance), transposed=True)
    return plain if turned.relation.change == "replaced" and shape == other else turned


def with_aligned_channels(
    a: WeightGraph, b: WeightGraph, differences: Sequence[TensorDifference]
) -> list[TensorDifference]:
    """Return the differences, channels in the order that fits best where the stored one does not.

    One of the networks must say how its layers are connected; otherwise channels stay as they are.
    """
    found = list(differences)
    for first, second, is_swapped in ((a, b, False), (b, a, True)):
        unlike = [x for x in found if len(x.a.shape) > 1 and not _is_alike(x)]
        if unlike and (groups := permutation_groups(first)):
            found = _Aligned(first, second, is_swapped, found, groups).differences()
    return found


class _Aligned:
    """Channels of the second network in the order of the first, which says how its layers are connected."""

    def __init__(
        self,
        first: WeightGraph,
        second: WeightGraph,
        is_swapped: bool,
        differences: Sequence[TensorDifference],
        groups: Sequence[PermutationGroup],
    ) -> None:
        self._first, self._second, self._is_swapped = first, second, is_swapped
        self._by_key = {self._params(x)[0].key: x for x in differences}
        self._axes = {
            key: axes
            for key, x in self._by_key.items()
            if len((axes := self._axes_of(x)).first) == len(axes.second)
            and axes.first[2:] == axes.second[2:]
        }
        unlike = [key for key in self._axes if not _is_alike(self._by_key[key])]
        self._alignment = ChannelAlignment(groups, self._axes, self._load, unlike)

    def differences(self) -> list[TensorDifference]:
        """Return all differences, those better whose channels were moved."""
        return [
            self._realigned(key, x) if key in self._alignment.moved else x
            for key, x in self._by_key.items()
        ]

    def _params(self, difference: TensorDifference) -> tuple[Param, Param]:
        a, b = difference.a, difference.b
        return (b, a) if self._is_swapped else (a, b)

    def _axes_of(self, difference: TensorDifference) -> Axes:
        first, second = self._params(difference)
        theirs = oriented_shape(second)
        if difference.transposed:
            theirs = (theirs[1], theirs[0], *theirs[2:])
        axis = first.axis % max(len(first.shape), 1)
        return Axes(first=oriented_shape(first), second=theirs, axis=axis)

    def _load(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self._params(self._by_key[key])
        x, y = _read(self._first, first), _read(self._second, second)
        return x, y.transpose(0, 1) if self._by_key[key].transposed else y

    def _realigned(self, key: str, difference: TensorDifference) -> TensorDifference:
        """Return the difference with channels in order, unless strangers would be as alike."""
        tensors = list(self._load(key))
        axes, chance = self._axes[key], _chance(difference.a.size)
        is_moved, outputs = False, None
        for place in range(min(tensors[0].ndim, 2)):
            entries = self._alignment.entries(key, place)
            if entries is None:
                continue
            is_moved |= not torch.equal(*entries)
            if place == 0:
                outputs = entries[::-1] if self._is_swapped else entries
            tensors = [x.index_select(place, i) for x, i in zip(tensors, entries, strict=True)]
            values = tensors[0].numel() // max(len(entries[0]), 1)
            chance = max(chance, _searched_chance(len(entries[0]), values))
        if not tensors[0].numel():
            return difference
        if self._is_swapped:
            tensors.reverse()
            if difference.transposed:
                tensors = [x.transpose(0, 1) for x in tensors]
        relation = relate(tensors[0], tensors[1], min(chance, 0.95))
        old, new = difference.relation.correlation or 0.0, relation.correlation or 0.0
        if relation.change == "replaced" or new <= old:
            return difference
        channels = tuple(tensors[0].shape[:2]) if axes.first != axes.second else ()
        return replace(
            difference,
            relation=relation,
            permuted=is_moved,
            channels=channels,
            outputs=None if difference.transposed else outputs,
        )


def _read(graph: WeightGraph, param: Param) -> torch.Tensor:
    return oriented(graph.tensors[param.key], param).cpu()


def _is_alike(difference: TensorDifference) -> bool:
    relation = difference.relation
    return relation.change == "equal" or (relation.correlation or 0.0) > _ALIKE


def _chance(values: int) -> float:
    """Return the correlation that strangers of so many values (N) hardly exceed (Fisher's transformation)."""
    return max(_CHANCE, tanh(_DEVIATIONS / sqrt(max(values - 3, 1))))


def _searched_chance(channels: int, values: int) -> float:
    """Return the same after the best of C channels of `values` values was chosen for each."""
    return _SEARCHED * sqrt(2 * log(max(channels, 2)) / max(values, 1))
