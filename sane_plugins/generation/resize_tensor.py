"""Resize tensors of prompts: channels repeated cyclically or side by side, maps and kernels resized.

The method: docs/explanation/sane.md, sections 11.2 and 11.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt

import torch
from torch.nn.functional import interpolate

from sane_plugins.weights import Param, crop_or_pad

_SYMMETRY_BREAKING_STD = 0.3  # relative; equal channels would stay equal in training


@dataclass(frozen=True, kw_only=True)
class TensorMapping:
    """A target tensor and its source in the prompt; `channels`: the layer's inputs (target, prompt)."""

    param: Param
    source: Param
    channels: tuple[int, int] | None
    is_classifier: bool


def resize_to_target(
    sources: Sequence[torch.Tensor], default: torch.Tensor, mapping: TensorMapping
) -> torch.Tensor:
    """Resize tensors of prompts to the target's shape, side by side along the channels."""
    target_shape, source_shape = mapping.param.shape, tuple(sources[0].shape)
    out_axis, count = mapping.param.axis, len(sources)
    if source_shape == target_shape and count == 1:
        return sources[0].clone()
    in_axis = 1 - out_axis if len(target_shape) > 1 else None
    channels = _channels_read(mapping, in_axis, count)
    if mapping.is_classifier:
        return _concatenate_inputs(torch.stack([*sources]), in_axis, channels)
    block_count = count if channels and mapping.channels else 1  # all prompts read the images
    source_index = _source_of_channel(target_shape[out_axis], source_shape[out_axis], count)
    resized = torch.stack([_resize_source(source, mapping, block_count) for source in sources])
    by_channel = resized.movedim(out_axis + 1, 1)
    value = by_channel[source_index, torch.arange(len(source_index))].movedim(0, out_axis)
    is_repeated = target_shape[out_axis] > source_shape[out_axis] * count or (
        channels and channels[0] > channels[1] * block_count
    )
    if in_axis is not None and is_repeated:
        value = value * _symmetry_breaking_noise(mapping.param).to(value)
    if in_axis is None or channels is None or block_count == 1:
        return value
    input_source_index = _source_of_channel(*channels, count).repeat_interleave(
        target_shape[in_axis] // channels[0]
    )
    is_cross_prompt = source_index[:, None] != input_source_index
    is_cross_prompt = is_cross_prompt if out_axis == 0 else is_cross_prompt.T
    shape = (*is_cross_prompt.shape, *[1] * (value.ndim - 2))
    return torch.where(is_cross_prompt.view(shape).to(value.device), default.to(value), value)


def _concatenate_inputs(
    sources: torch.Tensor, in_axis: int | None, channels: tuple[int, int] | None
) -> torch.Tensor:
    """Join classifiers along their inputs, so that each class reads the features of all prompts."""
    count = len(sources)
    if in_axis is None or channels is None:
        return sources.mean(0)
    source_index = _source_of_channel(*channels, count).repeat_interleave(
        sources.shape[in_axis + 1] // channels[0]
    )
    features = sources.movedim(in_axis + 1, 1)
    return features[source_index, torch.arange(len(source_index))].movedim(0, in_axis)


def _channels_read(
    mapping: TensorMapping, in_axis: int | None, count: int
) -> tuple[int, int] | None:
    """Return a layer's input channels (target, prompt), or None where they need no resizing."""
    if in_axis is None:
        return None
    size, source_size = mapping.param.shape[in_axis], mapping.source.shape[in_axis]
    target_channels, source_channels = mapping.channels or (size, source_size)
    if size == source_size and (
        count == 1
        or mapping.channels is None
        or target_channels != source_channels
        or size % target_channels
    ):
        return None
    return (size, source_size) if size % target_channels else (target_channels, source_channels)


def _resize_source(value: torch.Tensor, mapping: TensorMapping, block_count: int) -> torch.Tensor:
    """Resize a prompt's tensor to the target's shape; it reads one of `block_count` blocks of channels."""
    param = mapping.param
    out_axis = param.axis
    in_axis = 1 - out_axis if len(param.shape) > 1 else None
    for axis, size in enumerate(param.shape):
        if value.shape[axis] == size:
            continue
        if axis not in (out_axis, in_axis):
            value = crop_or_pad(value, axis, size)
        elif axis == out_axis:
            value = _repeat_cyclically(value, axis, size)
        elif map_sizes := _flattened_map_sizes(value.shape[axis], size, mapping):
            value = _resize_flattened_maps(value, axis, *map_sizes, block_count)
        else:
            value = _repeat_and_divide(value, axis, size, block_count)
    return value


def _repeat_cyclically(value: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    return value.index_select(axis, torch.arange(size, device=value.device) % value.shape[axis])


def _repeat_and_divide(value: torch.Tensor, axis: int, size: int, block_count: int) -> torch.Tensor:
    """Repeat channels cyclically; within each of `block_count` blocks, copies share the weight equally."""
    source_size = value.shape[axis]
    repeated = _repeat_cyclically(value, axis, size)
    if size <= source_size:
        return repeated
    copy_index = (
        _source_of_channel(size, source_size, block_count) * source_size
        + torch.arange(size) % source_size
    )
    shape = [1] * value.ndim
    shape[axis] = size
    return repeated / torch.bincount(copy_index)[copy_index].view(shape).to(value.device)


def _source_of_channel(size: int, source_size: int, count: int) -> torch.Tensor:
    """Return for each of `size` channels which of `count` prompts with `source_size` channels it comes from.

    Where they do not all fit, each prompt gives an equal part.
    """
    channels_per_source = min(source_size, -(-size // count))
    return torch.arange(size) // channels_per_source % count


def _flattened_map_sizes(
    source_size: int, target_size: int, mapping: TensorMapping
) -> tuple[int, int, int, int] | None:
    """Return channels and side of the flattened maps that a layer reads: the prompt's, then the target's."""
    if mapping.channels is None:
        return None
    target_channels, source_channels = mapping.channels
    if target_size % target_channels or source_size % source_channels:
        return None
    target_side = isqrt(target_size // target_channels)
    source_side = isqrt(source_size // source_channels)
    are_square = (
        target_side * target_side * target_channels == target_size
        and source_side * source_side * source_channels == source_size
    )
    if not are_square or max(target_side, source_side) == 1:
        return None
    return source_channels, source_side, target_channels, target_side


def _resize_flattened_maps(
    value: torch.Tensor,
    axis: int,
    source_channels: int,
    source_side: int,
    target_channels: int,
    target_side: int,
    block_count: int,
) -> torch.Tensor:
    """Resize the weights of flattened maps: channels are repeated cyclically, maps are interpolated."""
    maps = value.movedim(axis, -1).unflatten(-1, (source_channels, source_side, source_side))
    lead = maps.shape[:-3]
    if target_side != source_side:
        grid = maps.reshape(-1, source_channels, source_side, source_side)
        maps = interpolate(
            grid, size=(target_side, target_side), mode="bilinear", align_corners=False
        )
        maps = (maps * (source_side / target_side) ** 2).view(
            *lead, source_channels, target_side, target_side
        )
    return (
        _repeat_and_divide(maps, maps.ndim - 3, target_channels, block_count)
        .flatten(-3)
        .movedim(-1, axis)
    )


def _symmetry_breaking_noise(param: Param) -> torch.Tensor:
    seed = int.from_bytes(sha256(param.key.encode(errors="surrogatepass")).digest()[:7], "big")
    return 1 + _SYMMETRY_BREAKING_STD * torch.randn(
        param.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )
