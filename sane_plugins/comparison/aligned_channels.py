"""Which channel of one network is which of the other, where their order or number differs.

Weight matching (Git Re-Basin, Ainsworth et al. 2022) for networks of two widths: each group of exchangeable
channels is assigned by the squared distance of what its channels own, every output channel's weights
brought to length 1. One of the two networks must say how its layers are connected. Tensors are read when they
are looked at, and not kept.
The method: docs/explanation/sane.md, section 21.1.

Legend: C channels of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from sane_plugins.symmetry import AxisSlice, PermutationGroup

_MAX_SWEEPS = 6
_MAX_CHANNELS = 8192  # of one group: a matrix of their scores takes 256 MB
Load = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
Entries = tuple[torch.Tensor, torch.Tensor]
"""Entries of an axis that belong together: numbers in the first network, and in the second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Axes:
    """Oriented shapes of a pair of tensors, and the axis of its outputs in the first one's own order."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    axis: int

    def place(self, axis: int) -> int:
        """Return the place of an axis of the first tensor once its outputs come first."""
        if axis == self.axis:
            return 0
        return axis + (axis < self.axis)


class ChannelAlignment:
    """The channels of two networks in pairs, group by group; `moved` names tensors whose channels move."""

    def __init__(
        self,
        groups: Sequence[PermutationGroup],
        pairs: Mapping[str, Axes],
        load: Load,
        unlike: Collection[str],
    ) -> None:
        self._load = load
        self._groups = {group.name: group for group in groups}
        self._sizes = {group.name: _second_size(group, pairs) for group in groups}
        by_key: dict[str, list[tuple[str, AxisSlice]]] = {}
        for group in groups:
            for part in group.slices:
                by_key.setdefault(part.key, []).append((group.name, part))
        self._pairs = {
            key: axes for key, axes in pairs.items() if self._fits(axes, by_key.get(key, ()))
        }
        self._slices = {
            name: [x for x in group.slices if x.key in self._pairs and self._place(x) < 2]
            for name, group in self._groups.items()
        }
        self._by_axis: dict[tuple[str, int], list[tuple[str, AxisSlice]]] = {}
        for name, slices in self._slices.items():
            for part in slices:
                self._by_axis.setdefault((part.key, self._place(part)), []).append((name, part))
        self._found: dict[str, Entries] = {}
        wanted = [name for name in self._groups if self._is_wanted(name, unlike)]
        self.moved: set[str] = set()
        if wanted:
            self._match(wanted)

    def entries(self, key: str, place: int) -> Entries | None:
        """Return which entries of an axis belong together; None where all stand as they are."""
        axes = self._pairs[key]
        first, second = axes.first[place], axes.second[place]
        parts = sorted(self._by_axis.get((key, place), ()), key=lambda found: found[1].offset)
        if first == second and not any(name in self._found for name, _ in parts):
            return None
        mine: list[torch.Tensor] = []
        theirs: list[torch.Tensor] = []
        at_first = at_second = 0
        for name, part in parts:
            fixed = torch.arange(part.offset - at_first)
            mine.append(at_first + fixed)
            theirs.append(at_second + fixed)
            at_first, at_second = part.offset, at_second + len(fixed)
            ours, others = self._found.get(name, self._identity(name))
            within = torch.arange(part.repeat)
            mine.append(at_first + (ours[:, None] * part.repeat + within).flatten())
            theirs.append(at_second + (others[:, None] * part.repeat + within).flatten())
            at_first += part.length
            at_second += self._sizes[name] * part.repeat
        mine.append(torch.arange(at_first, first))
        theirs.append(torch.arange(at_second, second))
        return torch.cat(mine), torch.cat(theirs)

    def _place(self, part: AxisSlice) -> int:
        return self._pairs[part.key].place(part.axis)

    def _fits(self, axes: Axes, parts: Sequence[tuple[str, AxisSlice]]) -> bool:
        """Return whether two tensors differ in size by channels of groups alone."""
        lengths = list(axes.first)
        for name, part in parts:
            if (place := axes.place(part.axis)) < len(lengths):
                lengths[place] += self._sizes[name] * part.repeat - part.length
        return tuple(lengths) == axes.second

    def _identity(self, name: str) -> Entries:
        count = torch.arange(min(self._groups[name].size, self._sizes[name]))
        return count, count

    def _is_wanted(self, name: str, unlike: Collection[str]) -> bool:
        """Return whether a group's channels are matched: most of what it permutes is not alike."""
        group, size = self._groups[name], self._sizes[name]
        if max(group.size, size) > _MAX_CHANNELS or (group.blocks > 1 and group.size != size):
            return False
        keys = [part.key for part in self._slices[name] if len(self._pairs[part.key].first) > 1]
        return (group.size != size and len(keys) > 0) or 2 * sum(
            key in unlike for key in keys
        ) > len(keys) > 0

    def _match(self, wanted: Sequence[str]) -> None:
        """Match each group once by what is settled, and then all of them until none moves."""
        settled = set(self._groups) - set(wanted)
        for name in wanted:
            ready = [x for x in self._matrices(name) if self._is_settled(x, settled)]
            if ready:
                self._found[name] = self._assigned(name, ready)
                settled.add(name)
        for name in wanted:
            self._found.setdefault(name, self._identity(name))
        for _ in range(_MAX_SWEEPS):
            moved = False
            for name in wanted:
                found = self._assigned(name, self._matrices(name))
                moved |= not all(map(torch.equal, found, self._found[name]))
                self._found[name] = found
            if not moved:
                break
        self.moved = {x.key for name in wanted for x in self._slices[name]}

    def _matrices(self, name: str) -> list[AxisSlice]:
        return [x for x in self._slices[name] if len(self._pairs[x.key].first) > 1]

    def _is_settled(self, part: AxisSlice, settled: Collection[str]) -> bool:
        other = 1 - self._place(part)
        return all(name in settled for name, _ in self._by_axis.get((part.key, other), ()))

    def _assigned(self, name: str, slices: Sequence[AxisSlice]) -> Entries:
        """Assign a group's channels with all other axes as they are."""
        group, size = self._groups[name], self._sizes[name]
        costs = np.zeros((group.size, size), np.float32)
        for part in slices:
            costs += self._costs(part, group.size, size)
        block = group.size // group.blocks if group.blocks > 1 else max(costs.shape)
        mine, theirs = [], []
        for start in range(0, min(costs.shape), block):
            rows, columns = linear_sum_assignment(
                costs[start : start + block, start : start + block]
            )
            mine.append(rows + start)
            theirs.append(columns + start)
        found = np.concatenate(mine), np.concatenate(theirs)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def _costs(self, part: AxisSlice, size: int, second_size: int) -> npt.NDArray[np.float32]:
        """Return squared distances (C, C') of what channels own of one pair of tensors."""
        place = self._place(part)
        first, second = self._load(part.key)
        entries = self.entries(part.key, 1 - place)
        if entries is not None:
            first = first.index_select(1 - place, entries[0])
            second = second.index_select(1 - place, entries[1])
        offset = self._second_offset(part)
        x = _rows(first, place, part.offset, size, part.repeat)
        y = _rows(second, place, offset, second_size, part.repeat)
        squares_x, squares_y = (x * x).sum(1), (y * y).sum(1)
        return (squares_x[:, None] + squares_y - 2 * x @ y.T).numpy()

    def _second_offset(self, part: AxisSlice) -> int:
        """Return where a group begins on an axis of the second network."""
        before = [
            self._sizes[name] * x.repeat - x.length
            for name, x in self._by_axis[part.key, self._place(part)]
            if x.offset < part.offset
        ]
        return part.offset + sum(before)


def _second_size(group: PermutationGroup, pairs: Mapping[str, Axes]) -> int:
    """Return a group's number of channels in the second network, by axes that it has for itself."""
    sizes = Counter(
        pairs[x.key].second[place] // x.repeat
        for x in group.slices
        if x.key in pairs
        and (place := pairs[x.key].place(x.axis)) < 2
        and x.length == pairs[x.key].first[place]
    )
    return sizes.most_common(1)[0][0] if sizes else group.size


def _rows(tensor: torch.Tensor, place: int, offset: int, size: int, repeat: int) -> torch.Tensor:
    """Return what each channel owns (C, ...), every output channel's weights brought to length 1."""
    values = tensor.to("cpu", torch.float32)
    norms = torch.linalg.vector_norm(values, dim=(1, 2)).clamp(min=1e-30)
    rows: torch.Tensor = (values / norms[:, None, None]).movedim(place, 0)
    return rows[offset : offset + size * repeat].reshape(size, -1)
