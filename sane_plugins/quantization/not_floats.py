"""Tensors that are no floats: counters and tables, or weights of a quantiser that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

_TYPES = {torch.int8, torch.uint8, torch.int16, torch.uint16}
# Parts of the names that quantisers give to 32-bit integers that hold packed weights.
_PACKED_NAMES = ("weight", "packed", "qdata")
_PACKED_VALUES = 8  # in each of them, of 4 bits as a rule


def unread_reason(attribute: str, shape: Sequence[int], dtype: torch.dtype) -> tuple[str, int]:
    """Return why a tensor that is no floating-point one is left alone, and how many weights it may hold.

    A complex number counts as one weight, as torch counts it.
    """
    count = prod(shape)
    if dtype.is_complex:
        return f"{dtype} values are not read as weights", count
    note = "may be quantised weights; their scales are not known to this reader"
    if len(shape) > 1 and dtype in _TYPES:
        return f"{dtype} values {note}", count
    if len(shape) > 1 and dtype == torch.int32 and any(x in attribute for x in _PACKED_NAMES):
        return f"{dtype} values {note} (counted as eight of 4 bits)", _PACKED_VALUES * count
    return f"{dtype} values are no weights", 0
