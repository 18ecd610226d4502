"""Align a network to a reference by weight matching (Git Re-Basin, Ainsworth et al. 2022, algorithm 1).

Coordinate descent over permutation groups maximises the inner product of the two networks' weights.
Legend: C channels of one group.
The method: docs/explanation/sane.md, section 10.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sane_plugins.errors import SourceError
from sane_plugins.symmetry.permutation_group import AxisSlice, PermutationGroup
from sane_plugins.symmetry.permutations import Permutations, known_groups, permute
from sane_plugins.weights import RUNNING, WeightGraph, shape_text

MAX_CHANNELS = 20_000  # of one group: their scores take 1.6 GB
_MAX_SWEEPS = 100
_RELATIVE_TOLERANCE = 1e-6
_Array: TypeAlias = NDArray[np.float32]
_Index: TypeAlias = NDArray[np.int64]


def align(
    graph: WeightGraph,
    reference: WeightGraph,
    rng: torch.Generator,
    groups: Sequence[PermutationGroup] | None = None,
) -> WeightGraph:
    """Permute channels to match `reference` best, keeping the function.

    Raises `SourceError` where the two networks differ in shape.
    """
    known = known_groups(graph, groups)
    return permute(graph, alignment(graph, reference, rng, known), known)


def alignment(
    graph: WeightGraph,
    reference: WeightGraph,
    rng: torch.Generator,
    groups: Sequence[PermutationGroup] | None = None,
) -> Permutations:
    """Return the permutations that `align` applies, to apply them to other networks as well.

    Weight matching, algorithm 1 of Git Re-Basin. Running statistics are permuted but not compared.
    """
    known = known_groups(graph, groups)
    _require_same_shapes(graph, reference, {part.key for group in known for part in group.slices})
    counted = {p.key for p in graph.params if p.role not in RUNNING}
    return match_weights(known, graph.tensors, reference.tensors, counted, rng)


def match_weights(
    groups: Sequence[PermutationGroup],
    tensors: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    counted: set[str],
    rng: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Return the permutation of each group that brings `tensors` closest to `reference`.

    Only tensors in `counted` are compared. The descent starts from the identity, or from matching
    the groups once in network order where that is better: so it finds any permuted copy.
    """
    for group in groups:
        _require_matchable(group)
    keys = {p.key for group in groups for p in group.slices} & counted
    target = {key: _array(reference[key]) for key in keys}
    arrays = {key: _array(tensors[key]) for key in keys}
    state = _Matching(groups, arrays, target)
    ordered = _Matching(groups, dict(arrays), target)
    ordered.match_in_order()
    if ordered.objective(keys) > state.objective(keys):
        state = ordered
    for _ in range(_MAX_SWEEPS):
        order = torch.randperm(len(groups), generator=rng, device=rng.device).tolist()
        if sum(state.improve(groups[i]) for i in order) == 0:
            break
    return {name: torch.from_numpy(perm) for name, perm in state.perms.items()}


class _Matching:
    """The state of a matching: the permuted network, its permutations, and the target."""

    def __init__(
        self,
        groups: Sequence[PermutationGroup],
        arrays: dict[str, _Array],
        target: Mapping[str, _Array],
    ) -> None:
        self.groups, self.arrays, self.target = groups, arrays, target
        self.perms: dict[str, _Index] = {g.name: np.arange(g.size) for g in groups}
        self.slices = {g.name: [p for p in g.slices if p.key in target] for g in groups}

    def objective(self, keys: set[str]) -> float:
        """Return the inner product with the target over some tensors."""
        return sum(float(np.vdot(self.arrays[key], self.target[key])) for key in keys)

    def match_in_order(self) -> None:
        """Match each group once, using only tensors whose other axes are already matched."""
        open_axes: dict[str, set[tuple[int, str]]] = {}
        for name, slices in self.slices.items():
            for p in slices:
                open_axes.setdefault(p.key, set()).add((p.axis, name))
        for group in self.groups:
            settled = [
                p
                for p in self.slices[group.name]
                if all(axis == p.axis for axis, _ in open_axes[p.key])
            ]
            for p in self.slices[group.name]:
                open_axes[p.key].discard((p.axis, group.name))
            if settled:
                self._apply(group, _assign(self._scores(group, settled), group.blocks))

    def improve(self, group: PermutationGroup) -> bool:
        """Match one group with the others fixed; return whether the objective rose."""
        slices = self.slices[group.name]
        scores = self._scores(group, slices)
        perm = _assign(scores, group.blocks)
        gain = scores[np.arange(group.size), perm].sum() - np.trace(scores)
        if gain <= _RELATIVE_TOLERANCE * np.abs(scores).max(initial=0.0):
            return False
        keys = {p.key for p in slices}
        # A tensor with two axes in one group makes the gain above an estimate only.
        is_exact = len({(p.key, p.axis) for p in slices}) == len(keys)
        before = 0.0 if is_exact else self.objective(keys)
        self._apply(group, perm)
        if is_exact or self.objective(keys) > before + _RELATIVE_TOLERANCE * abs(before):
            return True
        self._apply(group, perm.argsort())
        return False

    def _scores(self, group: PermutationGroup, slices: Sequence[AxisSlice]) -> _Array:
        """Return (C, C): the inner products of the target's channels (rows) with ours."""
        scores = np.zeros((group.size, group.size), dtype=np.float32)
        for part in slices:
            ours = _rows(self.arrays[part.key], part, group.size)
            scores += _rows(self.target[part.key], part, group.size) @ ours.T
        return scores

    def _apply(self, group: PermutationGroup, perm: _Index) -> None:
        for part in self.slices[group.name]:
            array = self.arrays[part.key]
            index = part.index(torch.from_numpy(perm), array.shape[part.axis]).numpy()
            self.arrays[part.key] = array.take(index, axis=part.axis)
        self.perms[group.name] = self.perms[group.name][perm]


def _array(tensor: torch.Tensor) -> _Array:
    array: _Array = tensor.detach().cpu().float().numpy()
    return array


def _rows(array: _Array, part: AxisSlice, size: int) -> _Array:
    """Return one row of values per channel, (C, ...)."""
    channels = np.moveaxis(array, part.axis, 0)[part.offset : part.offset + part.length]
    return channels.reshape(size, -1)


def _assign(scores: _Array, blocks: int) -> _Index:
    """Solve the linear sum assignment in each block."""
    block = len(scores) // blocks
    parts = []
    for start in range(0, len(scores), block):
        stop = start + block
        _, columns = linear_sum_assignment(scores[start:stop, start:stop], maximize=True)
        parts.append(columns + start)
    return np.concatenate(parts)


def _require_matchable(group: PermutationGroup) -> None:
    """Raise `SourceError` where a group has too many channels: each is compared with each."""
    if group.size > MAX_CHANNELS:
        raise SourceError(
            f"'{group.name}'",
            f"{group.size} channels may change places there",
            f"at most {MAX_CHANNELS} are matched",
            "align networks that are not as wide",
        )


def _require_same_shapes(graph: WeightGraph, reference: WeightGraph, keys: set[str]) -> None:
    """Raise `SourceError` where one of these tensors is missing in the reference or differs in shape."""
    shapes = {p.key: p.shape for p in reference.params}
    for param in graph.params:
        if param.key in keys and shapes.get(param.key) != param.shape:
            raise SourceError(
                f"{graph.source}, '{param.key}'",
                f"the shape is {shape_text(param.shape)}",
                f"the reference {reference.source} has {_told(shapes.get(param.key))}",
                "align networks of one architecture",
            )


def _told(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else shape_text(shape)
