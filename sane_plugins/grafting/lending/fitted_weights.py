"""Bring a weight to another layer's shape: its channels by index maps, its taps around the middle.

The method: docs/explanation/sane.md, section 15.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from sane_plugins.grafting.lending.lent_layers import LentLayer
from sane_plugins.grafting.lending.unrolled_filters import unrolled
from sane_plugins.grafting.units import Unit
from sane_plugins.weights import crop_or_pad

_NOISE = 0.02  # relative; equal channels would stay equal in training


def fitted_weight(
    lent: LentLayer,
    unit: Unit,
    outputs: torch.Tensor,
    inputs: torch.Tensor,
    rng: torch.Generator,
    noise: float = _NOISE,
) -> torch.Tensor:
    """Return the weight of a unit from what it is lent, (out, in / groups, *taps) as the unit has it.

    outputs (out,) and inputs (in,) name the lent layer's channel of each of the unit's. What reads
    several copies of one channel is divided by their number. With copies on either side all values get
    relative Gaussian noise.
    """
    shape = (*unit.kernel,) if unit.kind != "linear" else unit.positions
    if lent.groups == unit.groups == 1:
        copies = torch.bincount(inputs)[inputs]
        weight = lent.weight[outputs][:, inputs]
        weight = weight / copies.view(1, -1, *[1] * (weight.ndim - 2))
    else:
        weight = _grouped(lent, unit.groups, outputs, inputs)
    is_map = unit.kind == "linear" and bool(shape)
    maps = None
    if is_map and lent.sliding is not None:
        maps = unrolled(weight, outputs, lent.sliding, tuple(shape))
    weight = _with_taps(weight, shape, lent.is_map, is_map=is_map) if maps is None else maps
    if noise and (_has_copies(outputs) or _has_copies(inputs)):
        weight = weight * (1 + noise * torch.randn(weight.shape, generator=rng))
    return weight.flatten(1) if unit.kind == "linear" else weight


def _has_copies(index: torch.Tensor) -> bool:
    return len(index.unique()) < len(index)


def image_inputs(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a weight (out, in, ...) for images of another number of channels: a grey one is all colours."""
    if weight.shape[1] == channels:
        return weight
    total = weight.sum(1, keepdim=True) / channels
    return total.expand(-1, channels, *[-1] * (weight.ndim - 2))


def _grouped(
    lent: LentLayer, groups: int, outputs: torch.Tensor, inputs: torch.Tensor
) -> torch.Tensor:
    """Return the weight where either layer is grouped; channels that the lent one does not join get zeros."""
    width = len(inputs) // groups
    lent_width, lent_height = lent.weight.shape[1], len(lent.weight) // lent.groups
    block = torch.arange(len(outputs)) // (len(outputs) // groups)
    read = inputs.view(groups, width)
    copies = torch.stack([torch.bincount(channels)[channels] for channels in read])
    local = read[block] - (outputs // lent_height * lent_width)[:, None]
    is_joined = (local >= 0) & (local < lent_width)
    weight = lent.weight[outputs[:, None], local.clamp(0, lent_width - 1)]
    factor = is_joined / copies[block]
    return weight * factor.view(*factor.shape, *[1] * (weight.ndim - 2))


def _with_taps(
    weight: torch.Tensor, shape: Sequence[int], was_map: bool, *, is_map: bool
) -> torch.Tensor:
    """Return a weight (out, in, *taps) with other taps.

    Kernels are cropped or padded around the middle. Those of a flattened map are resized, their sum kept; a
    layer that reads a vector gets the sum, one that gets from a vector the mean of all positions.
    """
    taps = tuple(weight.shape[2:])
    if taps == tuple(shape):
        return weight
    if not shape:
        return weight.flatten(2).sum(2)
    if is_map and not was_map:
        total = weight.flatten(2).sum(2) if taps else weight
        count = torch.Size(shape).numel()
        return (total / count).view(*total.shape, *[1] * len(shape)).expand(*total.shape, *shape)
    if was_map:
        return _resized(weight, shape)
    if not taps:
        weight = weight.view(*weight.shape, *[1] * len(shape))
    for axis, size in enumerate(shape, start=2):
        weight = crop_or_pad(weight, axis, size)
    return weight


def _resized(weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    is_smaller = all(new <= old for new, old in zip(shape, weight.shape[2:], strict=True))
    factor = torch.Size(weight.shape[2:]).numel() / torch.Size(shape).numel()
    if is_smaller:
        return interpolate(weight, size=tuple(shape), mode="area") * factor
    return interpolate(weight, size=tuple(shape), mode="bilinear", align_corners=False) * factor
