"""Quantised tensors as single objects: torch's own, and the classes of torchao and others that wrap some."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_DISTRIBUTED = "full_tensor"  # a method of sharded tensors, which are no quantised ones
_METHODS = ("get_original_weight", "dequantize")


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's values are made of other tensors, by a class that is not torch's own."""
    return is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, _DISTRIBUTED)


def can_unwrap(tensor: torch.Tensor) -> bool:
    """Return whether the class of a wrapper gives plain values."""
    return any(_own_method(tensor, name) for name in _METHODS)


def unwrap(tensor: torch.Tensor) -> torch.Tensor:
    """Return the plain values of a wrapper that `can_unwrap`."""
    name = next(name for name in _METHODS if _own_method(tensor, name))
    with torch.no_grad():
        values: torch.Tensor = getattr(tensor, name)()
    return values.detach()


def dequantized_from(tensor: torch.Tensor) -> str:
    """Return what a quantised tensor was, as `converted` says it."""
    if is_wrapper(tensor):
        return f"dequantised from {type(tensor).__name__}"
    scales = "one scale" if "tensor" in str(tensor.qscheme()) else "one scale per channel"
    return f"dequantised from {str(tensor.dtype).removeprefix('torch.')}, {scales}"


def _own_method(tensor: torch.Tensor, name: str) -> bool:
    own = getattr(type(tensor), name, None)
    return own is not None and own is not getattr(torch.Tensor, name, None)
