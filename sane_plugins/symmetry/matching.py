"""Weight matching: coordinate descent over permutation groups (Ainsworth et al. 2022, algorithm 1).

Maximises the inner product of two networks' weights. Legend: C channels of one group.
The method: docs/explanation/sane.md, section 10.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sane_plugins.symmetry.groups import AxisSlice, PermutationGroup

_SWEEPS = 100
_TINY = 1e-6
_Array: TypeAlias = NDArray[np.float32]
_Index: TypeAlias = NDArray[np.int64]


def match(
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
    keys = {p.key for group in groups for p in group.places} & counted
    target = {key: _array(reference[key]) for key in keys}
    given = {key: _array(tensors[key]) for key in keys}
    state = _State(groups, given, target)
    ahead = _State(groups, dict(given), target)
    ahead.match_in_order()
    if ahead.objective(keys) > state.objective(keys):
        state = ahead
    for _ in range(_SWEEPS):
        order = torch.randperm(len(groups), generator=rng, device=rng.device).tolist()
        if sum(state.improve(groups[i]) for i in order) == 0:
            break
    return {name: torch.from_numpy(perm) for name, perm in state.perms.items()}


class _State:
    """One network on its way to the target."""

    def __init__(
        self,
        groups: Sequence[PermutationGroup],
        arrays: dict[str, _Array],
        target: Mapping[str, _Array],
    ) -> None:
        self.groups, self.arrays, self.target = groups, arrays, target
        self.perms: dict[str, _Index] = {g.name: np.arange(g.size) for g in groups}
        self.places = {g.name: [p for p in g.places if p.key in target] for g in groups}

    def objective(self, keys: set[str]) -> float:
        """Return the inner product with the target over some tensors."""
        return sum(float(np.vdot(self.arrays[key], self.target[key])) for key in keys)

    def match_in_order(self) -> None:
        """Match each group once, by those tensors whose other axes are settled already."""
        open_axes = {(p.key, p.axis, name) for name, places in self.places.items() for p in places}
        for group in self.groups:
            settled = [
                p
                for p in self.places[group.name]
                if not any(key == p.key and axis != p.axis for key, axis, _ in open_axes)
            ]
            open_axes = {x for x in open_axes if x[2] != group.name}
            if settled:
                self._apply(group, _assign(self._scores(group, settled), group.blocks))

    def improve(self, group: PermutationGroup) -> bool:
        """Match one group with the others held; tell whether that raised the objective."""
        places = self.places[group.name]
        scores = self._scores(group, places)
        perm = _assign(scores, group.blocks)
        gain = scores[np.arange(group.size), perm].sum() - np.trace(scores)
        if gain <= _TINY * np.abs(scores).max(initial=0.0):
            return False
        keys = {p.key for p in places}
        # A tensor with two axes in one group makes the gain above an estimate only.
        is_exact = len({(p.key, p.axis) for p in places}) == len(keys)
        before = 0.0 if is_exact else self.objective(keys)
        self._apply(group, perm)
        if is_exact or self.objective(keys) > before + _TINY * abs(before):
            return True
        self._apply(group, perm.argsort())
        return False

    def _scores(self, group: PermutationGroup, places: Sequence[AxisSlice]) -> _Array:
        """Return (C, C): the inner products of the target's channels (rows) with ours."""
        scores = np.zeros((group.size, group.size), dtype=np.float32)
        for place in places:
            ours = _rows(self.arrays[place.key], place, group.size)
            scores += _rows(self.target[place.key], place, group.size) @ ours.T
        return scores

    def _apply(self, group: PermutationGroup, perm: _Index) -> None:
        for place in self.places[group.name]:
            array = self.arrays[place.key]
            index = np.arange(array.shape[place.axis])
            entries = perm[:, None] * place.repeat + np.arange(place.repeat)
            index[place.offset : place.offset + place.length] = entries.ravel() + place.offset
            self.arrays[place.key] = array.take(index, axis=place.axis)
        self.perms[group.name] = self.perms[group.name][perm]


def _array(tensor: torch.Tensor) -> _Array:
    found: _Array = tensor.detach().cpu().float().numpy()
    return found


def _rows(array: _Array, place: AxisSlice, size: int) -> _Array:
    """Return one row of values per channel, (C, ...)."""
    part = np.moveaxis(array, place.axis, 0)[place.offset : place.offset + place.length]
    return part.reshape(size, -1)


def _assign(scores: _Array, blocks: int) -> _Index:
    """Solve the linear sum assignment in each block."""
    block = len(scores) // blocks
    parts = []
    for start in range(0, len(scores), block):
        stop = start + block
        _, columns = linear_sum_assignment(scores[start:stop, start:stop], maximize=True)
        parts.append(columns + start)
    return np.concatenate(parts)
