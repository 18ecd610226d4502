"""The channel groups of a network's axes: which axes of which tensors have the same channels.

Residual sums and products unite what they join, a depthwise convolution's input is its output, and a
concatenated axis has several groups. The union-find is that of `sane_plugins.symmetry`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sane_plugins.symmetry import propagate_channels
from sane_plugins.weights import WeightGraph


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """The channels of one or more axes. `is_ordered`: they may not be put in another order.

    `is_image`: they are the channels of the images.
    """

    size: int
    is_ordered: bool = False
    is_image: bool = False


class ChannelAxes:
    """Channel groups by number; an axis of which nothing is known has a group of its own, in order."""

    def __init__(self, graph: WeightGraph | None) -> None:
        self.groups: list[ChannelGroup] = []
        self._layouts: dict[tuple[str, int], tuple[tuple[int, int], ...]] = {}
        self._own: dict[tuple[str, int], int] = {}
        if graph is None:
            return
        found, axes = propagate_channels(graph)
        for place, layout in axes.items():
            if layout is not None:
                self._layouts[place] = tuple(found.resolve(layout))
        grains = self._grains(graph)
        self.groups = [
            ChannelGroup(
                size=size * grains.get(i, 1), is_ordered=blocks > 1 or grains.get(i, 1) > 1
            )
            for i, (size, blocks) in enumerate(zip(found.sizes, found.blocks, strict=True))
        ]
        self._layouts = {
            place: tuple((group, repeat // grains.get(group, 1)) for group, repeat in layout)
            for place, layout in self._layouts.items()
            if not any(repeat % grains.get(group, 1) for group, repeat in layout)
        }

    def outputs(self, weight: str, size: int) -> tuple[int, ...]:
        """Return the groups of the output axis of a weight, of `size` entries."""
        layout = self._layouts.get((weight, 0), ())
        return self._fitting(layout, size, 1) or (self._anonymous(weight, 0, size),)

    def inputs(
        self, weight: str, size: int, groups: int, positions: int, *, is_image: bool
    ) -> tuple[int, ...]:
        """Return the groups of the channels that a weight reads: `size` in all, each at some positions.

        A grouped convolution (`groups`) reads what it returns where both are equally wide.
        """
        if is_image:
            return (self._anonymous(weight, 1, size, is_image=True),)
        layout = self._layouts.get((weight, 1 if groups == 1 else 0), ())
        return self._fitting(layout, size, positions) or (self._anonymous(weight, 1, size),)

    def repeats(self, weight: str) -> int:
        """Return how many entries in a row a weight reads of each channel: a flattened map's positions."""
        repeats = {repeat for _, repeat in self._layouts.get((weight, 1), ())}
        return repeats.pop() if len(repeats) == 1 else 1

    def _fitting(
        self, layout: tuple[tuple[int, int], ...], size: int, positions: int
    ) -> tuple[int, ...]:
        """Return a layout's groups where they have `size` channels, each at `positions`; () where not."""
        channels = sum(self.groups[group].size for group, _ in layout)
        is_even = all(repeat == positions for _, repeat in layout)
        return tuple(group for group, _ in layout) if channels == size and is_even else ()

    def _anonymous(self, weight: str, axis: int, size: int, *, is_image: bool = False) -> int:
        """Return the group of one axis alone, always the same."""
        if (weight, axis) not in self._own:
            self.groups.append(ChannelGroup(size=size, is_ordered=True, is_image=is_image))
            self._own[weight, axis] = len(self.groups) - 1
        return self._own[weight, axis]

    def _grains(self, graph: WeightGraph) -> dict[int, int]:
        """Return how many entries of a grouped convolution's axes make one element of its group.

        Where channels are only permuted by whole groups of a convolution, an element is such a group.
        """
        grains: dict[int, int] = {}
        for param in graph.params:
            layout = self._layouts.get((param.key, param.axis), ())
            for group, repeat in layout if len(param.shape) > 1 else ():
                grains[group] = min(grains.get(group, repeat), repeat)
        return grains
