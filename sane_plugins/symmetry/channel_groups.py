"""Groups of interchangeable channels, as a union-find: unified, split and restricted as layers require.

A *layout* describes one axis as segments (group, repeat): the channels of a group, each repeated that many
consecutive times. A group may become part of another one, so a layout is resolved when it is read.
The method: docs/explanation/sane.md, section 10.1.
"""

from __future__ import annotations

from math import lcm

Segment = tuple[int, int]
ChannelLayout = tuple[Segment, ...]


class ChannelGroups:
    """All groups of a network by number. A group of `blocks` b may only be permuted within b equal blocks."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.blocks: list[int] = []
        self._parts: dict[int, ChannelLayout] = {}

    def new(self, size: int, blocks: int = 1) -> ChannelLayout:
        """Return the layout of a new group."""
        self.sizes.append(size)
        self.blocks.append(blocks)
        return ((len(self.sizes) - 1, 1),)

    def resolve(self, layout: ChannelLayout) -> ChannelLayout:
        """Return the layout in terms of groups that were neither split nor merged into another."""
        resolved: list[Segment] = []
        for group, repeat in layout:
            resolved.extend((part, times * repeat) for part, times in self._whole(group))
        return tuple(resolved)

    def _whole(self, group: int) -> ChannelLayout:
        """Return a group as `resolve` does; long chains of merges and splits are shortened on the way."""
        pending = [group]
        while pending:
            parts = self._parts.get(pending[-1], ())
            if stale := [part for part, _ in parts if self._is_stale(part)]:
                pending += stale
                continue
            if parts:
                self._parts[pending[-1]] = tuple(
                    (inner, times * repeat)
                    for part, repeat in parts
                    for inner, times in self._parts.get(part, ((part, 1),))
                )
            pending.pop()
        return self._parts.get(group, ((group, 1),))

    def _is_stale(self, group: int) -> bool:
        """Return whether a group's parts have parts themselves."""
        return any(part in self._parts for part, _ in self._parts.get(group, ()))

    def entries(self, layout: ChannelLayout) -> int:
        """Return the length of the axis that the layout describes."""
        return sum(self.sizes[group] * repeat for group, repeat in layout)

    def pin(self, layout: ChannelLayout) -> None:
        """Forbid any permutation of these channels."""
        for group, _ in self.resolve(layout):
            self.blocks[group] = self.sizes[group]

    def is_free(self, group: int) -> bool:
        """Return whether any permutation but the identity is allowed."""
        return self.blocks[group] < self.sizes[group]

    def restrict_to_blocks(self, layout: ChannelLayout, groups: int) -> None:
        """Forbid permutations across the borders of `groups` equal parts of the axis."""
        total, start = self.entries(layout), 0
        part = total // groups if total % groups == 0 else 1
        for group, repeat in self.resolve(layout):
            stop = start + self.sizes[group] * repeat
            if start % part == 0 and stop % part == 0:
                self._restrict(group, (stop - start) // part)
            elif start // part != (stop - 1) // part:
                self.pin(((group, repeat),))
            start = stop

    def unify(self, one: ChannelLayout, other: ChannelLayout) -> None:
        """Require the same permutation of two axes; channels for which that is impossible are pinned."""
        left, right = self.resolve(one), self.resolve(other)
        if self.entries(left) != self.entries(right):
            self.pin(left + right)
            return
        if left == right:
            return
        # The first segments of both come last; only they are resolved, so that the walk stays linear.
        ones, others = (
            [segment for segment in reversed(layout) if self.entries((segment,))]
            for layout in (left, right)
        )
        while ones:
            for segments in (ones, others):
                segments += reversed(self.resolve((segments.pop(),)))
            a, b = self.entries((ones[-1],)), self.entries((others[-1],))
            if a == b:
                self._merge(ones.pop(), others.pop())
            elif not self._split(*((others[-1], a) if a < b else (ones[-1], b))):
                self.pin((*reversed(ones), *reversed(others)))
                return

    def _merge(self, one: Segment, other: Segment) -> None:
        """Merge two segments of the same length; the one with the larger repeat keeps its group."""
        (merged, inner), (target, outer) = sorted((other, one), key=lambda segment: segment[1])
        if target == merged:
            return
        if outer % inner:
            self.pin((one, other))
            return
        self._parts[merged] = ((target, outer // inner),)
        self._restrict(target, self.blocks[merged])

    def _split(self, segment: Segment, entries: int) -> bool:
        """Split a segment's group so that its first part has `entries` entries; return whether that works."""
        group, repeat = segment
        first, rest = divmod(entries, repeat)
        if rest:
            return False
        second = self.sizes[group] - first
        block = self.sizes[group] // self.blocks[group]
        if self.blocks[group] == 1:
            counts = 1, 1
        elif first % block == 0:
            counts = first // block, second // block
        else:
            counts = first, second
        self._parts[group] = self.new(first, counts[0]) + self.new(second, counts[1])
        return True

    def _restrict(self, group: int, blocks: int) -> None:
        combined = lcm(self.blocks[group], blocks)
        self.blocks[group] = self.sizes[group] if self.sizes[group] % combined else combined
