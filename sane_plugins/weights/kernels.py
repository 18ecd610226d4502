"""Kernels of another size: cropped around their middle, or padded."""

from __future__ import annotations

import torch


def crop_or_pad(weight: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Return a weight with one axis cropped around its middle, or padded with zeros, to a size."""
    taps = weight.shape[axis]
    if taps > size:
        return weight.narrow(axis, (taps - size) // 2, size)
    shape = list(weight.shape)
    shape[axis] = size
    padded = weight.new_zeros(shape)
    padded.narrow(axis, (size - taps) // 2, taps).copy_(weight)
    return padded
