"""What a change of type may do to values: round them, and nothing else."""

from __future__ import annotations

import torch


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return 8-bit numbers in single precision, which holds them exactly, and other tensors as they are.

    Torch stores 8-bit floats, and has few operators that compute with them.
    """
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def rounded_to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Return a tensor in another type, rounded; None where its numbers are beyond that type.

    Numbers in floating point do not become infinite; what becomes integers does not change at all.
    """
    rounded = tensor.to(dtype)
    if dtype == tensor.dtype:
        return rounded
    if dtype.is_floating_point or dtype.is_complex:
        fits = bool((widened(rounded).isfinite() | ~widened(tensor).isfinite()).all())
    else:
        fits = torch.equal(rounded.to(tensor.dtype), tensor)
    return rounded if fits else None


def is_rounded(value: torch.Tensor, asked: torch.Tensor) -> bool:
    """Return whether a computed value is the asked one but for the rounding of its type."""
    difference = (value.double() - asked.double()).abs()
    # Inner products are as long as the longest axis.
    steps = 8 + 4 * max(asked.shape, default=1) ** 0.5
    largest = float(asked.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if asked.numel() else 0.0
    same = (value == asked) | (value.isnan() & asked.isnan())
    return bool(((difference <= steps * torch.finfo(value.dtype).eps * largest) | same).all())
