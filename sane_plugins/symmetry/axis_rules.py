"""How layers that only move, merge or add axes move the channel axis of a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sane_plugins.symmetry.channel_groups import ChannelLayout
from sane_plugins.weights import Layer


@dataclass(frozen=True)
class ChannelValue:
    """A value between layers: a tensor whose `axis` (counted from the end) has this channel layout.

    `rank` is None if unknown. A value flattened by an unknown factor k has each channel
    k times in a row ("repeat") or the whole axis k times ("tile").
    """

    layout: ChannelLayout
    axis: int
    rank: int | None
    stretch: Literal["", "repeat", "tile"] = ""


def from_end(dims: Sequence[int], rank: int | None) -> tuple[int, ...]:
    """Return axes counted from the end; non-negative ones stay as they are where the rank is unknown."""
    return tuple(d - rank if d >= 0 and rank else d for d in dims)


def _flatten(layer: Layer, value: ChannelValue) -> ChannelValue | None:
    start = layer.dims[0]
    if value.rank is None or start < 1:
        return _flatten_last(value, start)
    axis = value.rank + value.axis
    if axis < start or start == value.rank - 1:
        return replace(value, axis=min(axis - start - 1, -1), rank=start + 1)
    if axis == start:
        return replace(value, axis=-1, rank=start + 1, stretch="repeat")
    # An axis between the flattened ones would be both tiled and repeated.
    is_last = value.axis == -1 and not value.stretch
    return replace(value, rank=start + 1, stretch="tile") if is_last else None


def _flatten_last(value: ChannelValue, start: int) -> ChannelValue | None:
    """Flatten a value of unknown rank: nothing may change, or the last axis is tiled."""
    if value.axis != -1 or start < 1:
        return None
    return replace(value, rank=start + 1, stretch=value.stretch or "tile")


def _permute(layer: Layer, value: ChannelValue) -> ChannelValue | None:
    rank = len(layer.dims)
    order = [d % rank for d in layer.dims]
    if value.rank not in (None, rank) or rank < -value.axis:
        return None
    return replace(value, axis=order.index(rank + value.axis) - rank, rank=rank)


def _transpose(layer: Layer, value: ChannelValue) -> ChannelValue | None:
    axes = from_end(layer.dims, value.rank)
    if len(axes) != 2 or any(a >= 0 for a in axes):
        return None
    first, second = axes
    return replace(value, axis={first: second, second: first}.get(value.axis, value.axis))


def _squeeze(layer: Layer, value: ChannelValue) -> ChannelValue | None:
    axes = from_end(layer.dims, value.rank)
    if not value.rank or any(a >= 0 for a in axes) or value.axis in axes:
        return None
    later_axes = sum(a > value.axis for a in axes)
    return replace(value, axis=value.axis + later_axes, rank=value.rank - len(axes))


def _unsqueeze(layer: Layer, value: ChannelValue) -> ChannelValue | None:
    rank = value.rank + len(layer.dims) if value.rank else None
    axes = from_end(layer.dims, rank)
    if any(a >= 0 for a in axes):
        return None
    axis = value.axis
    for new in sorted(axes, reverse=True):
        axis -= new >= axis
    return replace(value, axis=axis, rank=rank)


# Each rule returns None where the result is unknown.
AXIS_RULES: Mapping[str, Callable[[Layer, ChannelValue], ChannelValue | None]] = {
    "flatten": _flatten,
    "permute": _permute,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
}
