"""Numbers of a few bits packed into bytes, as MatMulNBits, GatherBlockQuantized and MatMulBnb4 keep them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class Packing:
    """A tensor of shape `shape` packed along its last axis, `bits` (2, 4 or 8) a number.

    Rows are padded to whole bytes, or to whole blocks. The low bits come first, or last where
    `is_high_first`. `codes` are the numbers that a code stands for; without them it is the number.
    """

    bits: int
    shape: tuple[int, ...]
    codes: tuple[float, ...] = ()
    is_high_first: bool = False

    @property
    def size(self) -> int:
        """Return how many numbers are packed."""
        return prod(self.shape)

    def fits(self, nbytes: int) -> bool:
        """Return whether so many bytes hold the tensor."""
        rows = prod(self.shape[:-1])
        return min(self.shape) > 0 and nbytes * 8 // self.bits >= rows * self.shape[-1]

    @property
    def widest_gap(self) -> float:
        """Return the largest difference between neighbouring numbers that codes stand for."""
        numbers = sorted(self.codes)
        return max((b - a for a, b in itertools.pairwise(numbers)), default=1.0)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the numbers that codes stand for."""
        if not self.codes:
            return codes
        return torch.tensor(self.codes)[codes.clamp(0, len(self.codes) - 1).long()]

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the codes of the nearest numbers."""
        if not self.codes:
            return torch.round(numbers)
        ordered, order = torch.tensor(self.codes).sort()
        middles = (ordered[1:] + ordered[:-1]) / 2
        nearest = order[torch.bucketize(numbers.contiguous(), middles)].float()
        return nearest.where(
            numbers.abs() < 1.01 * ordered.abs().max(), torch.full_like(nearest, torch.inf)
        )

    def unpack(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the codes in a tensor of `shape`."""
        wide = unpack_bits(stored.reshape(-1), self.bits, self.is_high_first)
        rows = prod(self.shape[:-1])
        width = wide.numel() // rows
        return wide[: rows * width].reshape(rows, width)[:, : self.shape[-1]].reshape(self.shape)

    def pack(self, codes: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return bytes of this shape that hold the codes."""
        rows, total = prod(self.shape[:-1]), prod(shape) * 8 // self.bits
        width = total // rows
        wide = torch.zeros(total, dtype=torch.uint8)
        table = wide[: rows * width].view(rows, width)
        table[:, : self.shape[-1]] = codes.reshape(rows, -1).to(torch.uint8)
        parts = wide.reshape(-1, 8 // self.bits)
        parts = parts.flip(1) if self.is_high_first else parts
        shifts = torch.arange(0, 8, self.bits, dtype=torch.uint8)
        packed: torch.Tensor = (parts << shifts).sum(1).to(torch.uint8)
        return packed.reshape(shape)


def unpack_bits(stored: torch.Tensor, bits: int, is_high_first: bool = False) -> torch.Tensor:
    """Return the numbers of each byte along the last axis, one after the other."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    shifts = shifts.flip(0) if is_high_first else shifts
    parts: torch.Tensor = (stored.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return parts.flatten(-2) if stored.ndim else parts
