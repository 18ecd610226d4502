"""Numbers of tensors that do not depend on the order of values: exactly, not up to rounding."""

from __future__ import annotations

from hashlib import sha256
from math import ceil, log2

import torch

_EXACT_BITS = 52  # of integers that float64 sums without rounding
_CHUNK_SIZE = 2**20  # values converted to float64 at a time


def values_digest(tensor: torch.Tensor) -> bytes:
    """Return a digest of a tensor's values in ascending order."""
    values = tensor.detach().cpu().reshape(-1).float().sort().values + 0.0  # -0 is 0
    return sha256(values.numpy().tobytes()).digest()


def squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """Return the squared norm (C,) float64 of each row (C, ...), the same for any order of its values.

    Squares are rounded to integers, as fractions of the row's largest, and sums of integers are exact.
    """
    norms = torch.zeros(len(rows), dtype=torch.float64)
    count = rows[:1].numel()
    if not count:
        return norms
    scale = 2.0 ** (_EXACT_BITS - ceil(log2(count)) - 1)
    step = max(_CHUNK_SIZE // count, 1)
    for start in range(0, len(rows), step):
        squares = rows[start : start + step].reshape(-1, count)
        squares = squares.to("cpu", torch.float64, copy=True).square_()
        largest = squares.amax(1, keepdim=True)
        squares.div_(largest.where(largest > 0, 1)).mul_(scale).round_()
        norms[start : start + step] = squares.sum(1) * largest[:, 0] / scale
    return norms
