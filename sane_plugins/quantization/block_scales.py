"""Scales of blocks: one per tensor, channel, group of columns, or tile, spread over the values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

_TILE = 128  # rows and columns of the blocks of DeepSeek's files and their kind


def block_shape(shape: Sequence[int], scales: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape of the block that shares a scale; None where the shapes leave it open.

    One scale is the tensor's; a vector of scales goes along the first axis. Elsewhere scales have the
    tensor's axes. A last block may be smaller: then it is one of 128 by 128, or its size a power of two.
    """
    if prod(scales) == 1:
        return tuple(shape)
    scales = (*scales, *[1] * (len(shape) - 1)) if len(scales) == 1 else tuple(scales)
    if len(scales) != len(shape):
        return None
    if scales[-2:] == tuple(-(-size // _TILE) for size in shape[-2:]):
        leading = [_block(size, count) for size, count in zip(shape[:-2], scales[:-2], strict=True)]
        blocks = [*leading, *(min(size, _TILE) for size in shape[-2:])]
        return tuple(blocks) if all(blocks) else None
    blocks = [_block(size, count) for size, count in zip(shape, scales, strict=True)]
    return tuple(blocks) if all(blocks) else None


def spread(scales: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return one scale per value of a tensor of `shape` that `block_shape` takes, as float32.

    It broadcasts to that shape.
    """
    blocks = block_shape(shape, scales.shape)
    assert blocks is not None
    wide = as_float(scales)
    if scales.numel() == 1:
        return wide.reshape([1] * len(shape))
    wide = wide.reshape(*scales.shape, *[1] * (len(shape) - scales.dim()))
    for axis, (block, size) in enumerate(zip(blocks, shape, strict=True)):
        if 1 < wide.shape[axis] < size:
            wide = wide.repeat_interleave(block, axis).narrow(axis, 0, size)
    return wide


def as_float(scales: torch.Tensor) -> torch.Tensor:
    """Return scales as float32; bytes are exponents of two, as MX formats store them."""
    exponents = scales.dtype == torch.uint8
    return (scales.view(torch.float8_e8m0fnu) if exponents else scales).float()


def _block(size: int, count: int) -> int:
    """Return how many of `size` values share each of `count` scales; 0 where that is open."""
    if not count or count > size:
        return 0
    exact = size // count if size % count == 0 else 0
    if count == 1 or exact == 1 or _is_power_of_two(exact):
        return exact
    powers = [2**n for n in range(1, 16) if -(-size // 2**n) == count]
    return (powers[0] if powers else 0) if not exact else 0 if powers else exact


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
