"""Tensors as a quantiser stored them, and what is known of the weight that several of them make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch

Tensors = Mapping[str, torch.Tensor]
Described = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
FLOAT8 = {
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
}
FLOAT4 = torch.float4_e2m1fn_x2
EXPONENTS = {torch.uint8, torch.float8_e8m0fnu}
"""Types of scales that are powers of two: MX formats store their exponent in a byte."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A floating-point tensor `key` that is stored as `parts`; `decode` computes it from them."""

    key: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    how: str
    decode: Callable[[Tensors], torch.Tensor]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class UnreadTensor:
    """A quantised tensor whose layout is not certain: its stored values, true number of weights, and parts.

    `key` is the weight's name where it is another than that of its values.
    """

    stored: str
    count: int
    reason: str
    parts: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Stored:
    """The tensors of a source: shapes and types by name, and values, which are read on access."""

    described: Described
    tensors: Tensors

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape as it is stored."""
        return self.described[key][0]

    def size(self, key: str) -> int:
        """Return how many values a tensor has as it is stored."""
        return prod(self.shape(key))

    def dtype(self, key: str) -> torch.dtype:
        """Return a tensor's type as it is stored."""
        return self.described[key][1]

    def present(self, *keys: str) -> tuple[str, ...]:
        """Return those of the names that the source has."""
        return tuple(key for key in keys if key in self.described)

    def first(self, *keys: str) -> str | None:
        """Return the first of the names that the source has, or None."""
        return next(iter(self.present(*keys)), None)

    def is_real(self, key: str) -> bool:
        """Return whether a tensor is a floating-point one of at least 16 bits."""
        dtype = self.dtype(key)
        return dtype.is_floating_point and dtype.itemsize > 1

    def numbers(self, key: str, most: int = 32) -> list[int]:
        """Return the values of a small integer tensor; empty where it is larger, or holds no such values."""
        dtype = self.dtype(key)
        if self.size(key) > most or dtype.is_floating_point or dtype.is_complex:
            return []
        tensor = self.tensors[key]
        return [] if tensor.is_meta else [int(x) for x in tensor.reshape(-1).tolist()]


def split_key(key: str) -> tuple[str, str]:
    """Return a key's layer, with the dot that ends it, and its attribute."""
    layer, dot, attribute = key.rpartition(".")
    return layer + dot, attribute
