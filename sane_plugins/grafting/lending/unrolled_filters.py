"""Unroll a convolution's filters for a linear layer that reads flattened maps: each copy at its own places.

The method: docs/explanation/sane.md, section 15.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import conv_transpose2d

from sane_plugins.grafting.execution import CONVOLUTIONS


@dataclass(frozen=True)
class Sliding:
    """How a filter slides over a map: by `stride` pixels, beginning `padding` pixels outside."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def places(self, taps: tuple[int, ...], sides: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sides of the map that a filter with these taps makes of a map with these sides."""
        steps = zip(taps, sides, self.stride, self.padding, strict=True)
        return tuple((side + 2 * pad - tap) // step + 1 for tap, side, step, pad in steps)


def sliding_of(module: nn.Module) -> Sliding | None:
    """Return how a convolution's filters slide; None for one whose taps stand apart, and other layers."""
    if not isinstance(module, CONVOLUTIONS) or max(module.dilation) > 1:
        return None
    padding = module.padding
    if isinstance(padding, str):
        is_same = padding == "same"
        padding = tuple((side - 1) // 2 if is_same else 0 for side in module.kernel_size)
    return Sliding(tuple(module.stride), tuple(padding))


def unrolled(
    weight: torch.Tensor, channels: torch.Tensor, sliding: Sliding, sides: tuple[int, ...]
) -> torch.Tensor | None:
    """Return filters (out, in, kh, kw) as weights on maps (out, in, height, width), or None where none fits.

    `channels` (out,) says which outputs are copies of one filter. The places of a filter, in rows, are
    divided among its copies, and each computes the mean over its share: a single one over all places, and
    as many copies as there are places compute what the convolution does, place by place.
    """
    taps = tuple(weight.shape[2:])
    if len(taps) != 2 or len(sides) != 2:
        return None
    places = sliding.places(taps, sides)
    if min(places) < 1:
        return None
    shares = _shares(channels, places[0] * places[1]).view(1, -1, *places)
    left = [
        side - ((count - 1) * step - 2 * pad + tap)
        for side, count, step, pad, tap in zip(
            sides, places, sliding.stride, sliding.padding, taps, strict=True
        )
    ]
    maps = conv_transpose2d(
        shares, weight, None, sliding.stride, sliding.padding, left, groups=len(weight)
    )
    return maps.view(*weight.shape[:2], *sides)


def _shares(channels: torch.Tensor, places: int) -> torch.Tensor:
    """Return by how much each output (row) weighs each place (out, places): rows sum to 1."""
    counts = torch.bincount(channels)[channels]
    order = channels.argsort(stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(channels).cumsum(0)])
    copy = torch.empty_like(channels)
    copy[order] = torch.arange(len(channels)) - starts[channels[order]]
    owner = torch.arange(places) * counts[:, None].clamp(max=places) // places
    mine = (owner == (copy % places)[:, None]).float()
    return mine / mine.sum(1, keepdim=True)
