"""The coarsest floating-point type that holds a tensor's values exactly, whatever type it is stored in.

The method: docs/explanation/sane.md, section 21.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_COARSE = (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Precision:
    """A type's name, the relative step between its numbers, and its smallest number above 0."""

    name: str
    step: float
    smallest: float

    def rounding(self, values: torch.Tensor) -> torch.Tensor:
        """Return by how much rounding to this precision may move each value."""
        return values.abs() * (self.step / 2) + self.smallest / 2


def precision_of(tensor: torch.Tensor) -> Precision:
    """Return the coarsest precision that holds all values, which must be finite."""
    values = tensor.detach()
    fine = torch.float64 if values.dtype == torch.float64 else torch.float32
    for dtype in _COARSE:
        if all(_holds(part, dtype, fine) for part in values.reshape(-1).split(2**20)):
            return _precision(dtype)
    if fine == torch.float64 and not _holds(values, torch.float32, fine):
        return _precision(torch.float64)
    return _precision(torch.float32)


def _holds(values: torch.Tensor, dtype: torch.dtype, fine: torch.dtype) -> bool:
    return torch.equal(values.to(fine).to(dtype).to(fine), values.to(fine))


def _precision(dtype: torch.dtype) -> Precision:
    info = torch.finfo(dtype)
    return Precision(str(dtype).removeprefix("torch."), info.eps, info.tiny * info.eps)
