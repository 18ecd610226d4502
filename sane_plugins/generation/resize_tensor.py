"""Tensors of prompts in another shape: channels counted around or side by side, maps and kernels resized.

The method: docs/explanation/sane.md, sections 11.2 and 11.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt

import torch
from torch.nn.functional import interpolate

from sane_plugins.weights import Param

_NOISE = 0.3  # of repeated channels: equal ones would stay equal in training


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where a tensor of the target comes from; `channels` are those that a layer reads, of both."""

    param: Param
    source: Param
    channels: tuple[int, int] | None
    is_classifier: bool


def fitted(sources: Sequence[torch.Tensor], default: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Bring tensors of prompts to the target's shape, side by side along the channels."""
    size, had = piece.param.shape, tuple(sources[0].shape)
    out, count = piece.param.axis, len(sources)
    if had == size and count == 1:
        return sources[0].clone()
    into = 1 - out if len(size) > 1 else None
    read = _channels_read(piece, into, count)
    if piece.is_classifier:
        return _summed(torch.stack([*sources]), into, read)
    joined = count if read and piece.channels else 1  # all prompts read the images
    block = _block(size[out], had[out], count)
    parts = torch.stack([_resized(source, piece, joined) for source in sources])
    value = parts.movedim(out + 1, 1)[block, torch.arange(len(block))].movedim(0, out)
    is_repeated = size[out] > had[out] * count or (read and read[0] > read[1] * joined)
    if into is not None and is_repeated:
        value = value * _noise(piece.param).to(value)
    if into is None or read is None or joined == 1:
        return value
    theirs = _block(*read, count).repeat_interleave(size[into] // read[0])
    apart = block[:, None] != theirs
    apart = apart if out == 0 else apart.T
    shape = (*apart.shape, *[1] * (value.ndim - 2))
    return torch.where(apart.view(shape).to(value.device), default.to(value), value)


def _summed(sources: torch.Tensor, into: int | None, read: tuple[int, int] | None) -> torch.Tensor:
    """Let each class read all prompts, of each the features that there are."""
    count = len(sources)
    if into is None or read is None:
        return sources.mean(0)
    theirs = _block(*read, count).repeat_interleave(sources.shape[into + 1] // read[0])
    features = sources.movedim(into + 1, 1)
    return features[theirs, torch.arange(len(theirs))].movedim(0, into)


def _channels_read(piece: Piece, into: int | None, count: int) -> tuple[int, int] | None:
    """Return how many channels a layer reads, of the target and of the prompt; None where all are alike."""
    if into is None:
        return None
    size, had = piece.param.shape[into], piece.source.shape[into]
    own, theirs = piece.channels or (size, had)
    if size == had and (count == 1 or piece.channels is None or own != theirs or size % own):
        return None
    return (size, had) if size % own else (own, theirs)


def _resized(value: torch.Tensor, piece: Piece, joined: int) -> torch.Tensor:
    """Bring a prompt's tensor to the target's shape; it reads one of `joined` blocks of channels."""
    param = piece.param
    out = param.axis
    into = 1 - out if len(param.shape) > 1 else None
    for axis, size in enumerate(param.shape):
        if value.shape[axis] == size:
            continue
        if axis not in (out, into):
            value = _cropped(value, axis, size)
        elif axis == out:
            value = _counted_around(value, axis, size)
        elif parts := _features(value.shape[axis], size, piece):
            value = _flat_features(value, axis, *parts, joined)
        else:
            value = _shared(value, axis, size, joined)
    return value


def _counted_around(value: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    return value.index_select(axis, torch.arange(size, device=value.device) % value.shape[axis])


def _shared(value: torch.Tensor, axis: int, size: int, joined: int) -> torch.Tensor:
    """Count channels around; each copy within one of `joined` blocks gets its part of the weight."""
    had = value.shape[axis]
    found = _counted_around(value, axis, size)
    if size <= had:
        return found
    copy = _block(size, had, joined) * had + torch.arange(size) % had
    shape = [1] * value.ndim
    shape[axis] = size
    return found / torch.bincount(copy)[copy].view(shape).to(value.device)


def _block(size: int, had: int, count: int) -> torch.Tensor:
    """Return for each of `size` channels which of `count` prompts with `had` channels it comes from.

    Where they do not fit whole, each gives an equal part.
    """
    each = min(had, -(-size // count))
    return torch.arange(size) // each % count


def _features(had: int, wanted: int, piece: Piece) -> tuple[int, int, int, int] | None:
    """Return channels and side of flattened maps that a layer reads, of the prompt and of the target."""
    if piece.channels is None:
        return None
    own, theirs = piece.channels
    if wanted % own or had % theirs:
        return None
    side, their_side = isqrt(wanted // own), isqrt(had // theirs)
    squares = side * side * own == wanted and their_side * their_side * theirs == had
    return (theirs, their_side, own, side) if squares and max(side, their_side) > 1 else None


def _flat_features(
    value: torch.Tensor, axis: int, had: int, had_side: int, wanted: int, side: int, joined: int
) -> torch.Tensor:
    """Fit the weights of flattened maps: channels are counted around, maps are resized."""
    maps = value.movedim(axis, -1).unflatten(-1, (had, had_side, had_side))
    lead = maps.shape[:-3]
    if side != had_side:
        grid = maps.reshape(-1, had, had_side, had_side)
        maps = interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
        maps = (maps * (had_side / side) ** 2).view(*lead, had, side, side)
    return _shared(maps, maps.ndim - 3, wanted, joined).flatten(-3).movedim(-1, axis)


def _cropped(value: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Cut a kernel's axis around its middle, or pad it with zeros."""
    had = value.shape[axis]
    if had > size:
        return value.narrow(axis, (had - size) // 2, size)
    shape = list(value.shape)
    shape[axis] = size
    padded = value.new_zeros(shape)
    padded.narrow(axis, (size - had) // 2, had).copy_(value)
    return padded


def _noise(param: Param) -> torch.Tensor:
    seed = int.from_bytes(sha256(param.key.encode()).digest()[:7], "big")
    return 1 + _NOISE * torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
