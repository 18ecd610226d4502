"""Tell channels of equal norm apart: color refinement (Weisfeiler and Leman 1968) with values as edges.

A channel's color is a 64-bit number: a hash of its norm at first, then round by round of its color and of
all (value, color of the other channel) that it owns. Sums wrap around, so that no order of channels
changes them. Channels that stay of one color are exchangeable, but for rare symmetric networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sane_plugins.symmetry.permutation_group import AxisSlice, PermutationGroup
from sane_plugins.weights import WeightGraph

_MAX_ROUNDS = 8
# Odd constants of SplitMix64 (Steele et al. 2014), as signed numbers.
_GAMMA, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685
_CHUNK_SIZE = 2**20
_Colors = dict[str, torch.Tensor]


def refine(
    graph: WeightGraph,
    groups: Sequence[PermutationGroup],
    norms: Mapping[str, torch.Tensor],
    tied: Sequence[PermutationGroup],
) -> _Colors:
    """Return colors (C,) int64 of the channels of `tied` groups; `norms` are those of all groups."""
    colors = {group.name: _first_colors(group, norms[group.name]) for group in groups}
    axes = _axes(groups)
    counts: list[int] = []
    for _ in range(_MAX_ROUNDS):
        colors |= {group.name: _next_colors(graph, group, colors, axes) for group in tied}
        counts.append(sum(len(colors[group.name].unique()) for group in tied))
        is_done = counts[-1] == sum(group.size for group in tied) or counts[-1] in counts[:-1]
        if is_done:
            break
    return {group.name: colors[group.name] for group in tied}


def _first_colors(group: PermutationGroup, norms: torch.Tensor) -> torch.Tensor:
    block = torch.arange(group.blocks).repeat_interleave(group.size // group.blocks)
    return _mix(norms.view(torch.int64) + _mix(block))


def _axes(
    groups: Sequence[PermutationGroup],
) -> dict[tuple[str, int], list[tuple[PermutationGroup, AxisSlice]]]:
    axes: dict[tuple[str, int], list[tuple[PermutationGroup, AxisSlice]]] = {}
    for group in groups:
        for part in group.slices:
            axes.setdefault((part.key, part.axis), []).append((group, part))
    return axes


def _next_colors(
    graph: WeightGraph,
    group: PermutationGroup,
    colors: _Colors,
    axes: Mapping[tuple[str, int], Sequence[tuple[PermutationGroup, AxisSlice]]],
) -> torch.Tensor:
    """Return a group's colors after one more round."""
    total = _mix(colors[group.name])
    numbers = {param.key: i for i, param in enumerate(graph.params)}
    for part in group.slices:
        tensor = graph.tensors[part.key].detach()
        place = torch.full((1,) * tensor.ndim, numbers[part.key], dtype=torch.int64)
        for axis, size in enumerate(tensor.shape):
            if axis != part.axis:
                shape = [1] * tensor.ndim
                shape[axis] = size
                own = _axis_colors(size, axes.get((part.key, axis), ()), colors)
                place = _mix(place * 3 + own.view(shape))
        total = total + _row_colors(part, tensor, place, group.size)
    return _mix(total)


def _axis_colors(
    size: int, parts: Sequence[tuple[PermutationGroup, AxisSlice]], colors: _Colors
) -> torch.Tensor:
    """Return the color (size,) of each entry of an axis: its channel's, or its number where that is fixed."""
    found = _mix(torch.arange(size))
    for group, part in parts:
        within = _mix(torch.arange(part.repeat))
        own = colors[group.name][:, None] + within
        found[part.offset : part.offset + part.length] = own.flatten()
    return found


def _row_colors(
    part: AxisSlice, tensor: torch.Tensor, place: torch.Tensor, channels: int
) -> torch.Tensor:
    """Return the sum (C,) of the hashes of all values that each channel owns, with their places."""
    rows = part.channels(tensor, channels)  # (C, repeat, ...)
    place = place.movedim(part.axis, 0)[None] + _mix(torch.arange(part.repeat)).view(
        1, -1, *[1] * (tensor.ndim - 1)
    )
    step = max(_CHUNK_SIZE // max(rows[:1].numel(), 1), 1)
    sums = []
    for start in range(0, channels, step):
        values = rows[start : start + step].to("cpu", torch.float64) + 0.0  # -0 is 0
        hashed = _mix(values.view(torch.int64) ^ place)
        sums.append(hashed.flatten(1).sum(1))
    return torch.cat(sums)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Return the output function of SplitMix64 of each number."""
    x = x + _GAMMA
    x = (x ^ _shifted(x, 30)) * _MIX1
    x = (x ^ _shifted(x, 27)) * _MIX2
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
