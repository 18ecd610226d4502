"""Spaces of interchangeable channels: made equal, cut and restricted as the layers demand.

A *layout* describes one axis as segments (space, repeat): the channels of a space, each repeated that
many consecutive times. A space may become part of another one, so a layout is resolved when it is read.
The method: docs/explanation/sane.md, section 10.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

Segment = tuple[int, int]
ChannelLayout = tuple[Segment, ...]


@dataclass(frozen=True)
class AxisSlice:
    """Where a group's channels lie: entries offset..offset+length of one axis of tensor `key`.

    Each channel fills `repeat` consecutive entries; length = channels * repeat.
    """

    key: str
    axis: int
    offset: int
    length: int
    repeat: int


@dataclass(frozen=True)
class PermutationGroup:
    """Channels that may be permuted together, each within its own one of `blocks` equal blocks."""

    name: str
    size: int
    blocks: int = 1
    places: tuple[AxisSlice, ...] = ()


class ChannelGroups:
    """All spaces of one network. A space of `blocks` b may only be permuted within b equal blocks."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.blocks: list[int] = []
        self._bound: dict[int, ChannelLayout] = {}

    def new(self, size: int, blocks: int = 1) -> ChannelLayout:
        """Return the layout of a new space."""
        self.sizes.append(size)
        self.blocks.append(blocks)
        return ((len(self.sizes) - 1, 1),)

    def resolve(self, layout: ChannelLayout) -> ChannelLayout:
        """Return the layout in terms of spaces that are not part of others."""
        found: list[Segment] = []
        for space, repeat in layout:
            if space in self._bound:
                inner = self._bound[space] = self.resolve(self._bound[space])
                found.extend((part, times * repeat) for part, times in inner)
            else:
                found.append((space, repeat))
        return tuple(found)

    def entries(self, layout: ChannelLayout) -> int:
        """Return the length of the axis that the layout describes."""
        return sum(self.sizes[space] * repeat for space, repeat in layout)

    def pin(self, layout: ChannelLayout) -> None:
        """Forbid any permutation of these channels."""
        for space, _ in self.resolve(layout):
            self.blocks[space] = self.sizes[space]

    def is_free(self, space: int) -> bool:
        """Tell whether a permutation other than the identity is left."""
        return self.blocks[space] < self.sizes[space]

    def keep_within(self, layout: ChannelLayout, groups: int) -> None:
        """Forbid that channels cross the borders of `groups` equal parts of the axis."""
        total, start = self.entries(layout), 0
        part = total // groups if total % groups == 0 else 1
        for space, repeat in self.resolve(layout):
            stop = start + self.sizes[space] * repeat
            if start % part == 0 and stop % part == 0:
                self._restrict(space, (stop - start) // part)
            elif start // part != (stop - 1) // part:
                self.pin(((space, repeat),))
            start = stop

    def unify(self, one: ChannelLayout, other: ChannelLayout) -> None:
        """Demand that two axes are permuted alike; what cannot be is pinned."""
        left, right = self.resolve(one), self.resolve(other)
        if self.entries(left) != self.entries(right):
            self.pin(left + right)
            return
        while left:
            a, b = self.entries(left[:1]), self.entries(right[:1])
            if a == b:
                self._merge(left[0], right[0])
                left, right = left[1:], right[1:]
            elif not self._cut(*((right[0], a) if a < b else (left[0], b))):
                self.pin(left + right)
                return
            left, right = self.resolve(left), self.resolve(right)

    def _merge(self, one: Segment, other: Segment) -> None:
        """Make two segments of the same length one; the larger repeat keeps its space."""
        (gone, inner), (keep, outer) = sorted((other, one), key=lambda segment: segment[1])
        if keep == gone:
            return
        if outer % inner:
            self.pin((one, other))
            return
        self._bound[gone] = ((keep, outer // inner),)
        self._restrict(keep, self.blocks[gone])

    def _cut(self, segment: Segment, entries: int) -> bool:
        """Cut a segment's space so that its first part fills `entries`; tell whether that works."""
        space, repeat = segment
        first, rest = divmod(entries, repeat)
        if rest:
            return False
        second = self.sizes[space] - first
        block = self.sizes[space] // self.blocks[space]
        if self.blocks[space] == 1:
            counts = 1, 1
        elif first % block == 0:
            counts = first // block, second // block
        else:
            counts = first, second
        self._bound[space] = self.new(first, counts[0]) + self.new(second, counts[1])
        return True

    def _restrict(self, space: int, blocks: int) -> None:
        both = lcm(self.blocks[space], blocks)
        self.blocks[space] = self.sizes[space] if self.sizes[space] % both else both
