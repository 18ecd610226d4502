"""Quantised and sparse tensors, converted to dense floating point when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch

from sane_plugins.formats.guards import source_errors
from sane_plugins.quantization import (
    Described,
    can_unwrap,
    dequantized_from,
    find_quantized,
    is_wrapper,
    unread_reason,
    unwrap,
)

DENSE = 2**31  # bytes that all sparse tensors of a source may take once dense
FLOATS = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,  # two values each; their shapes count pairs until they are decoded
}

_Decode = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Content:
    """Tensors of a source: shapes and types, what was converted, and what cannot be read.

    `converted` says how; `unread` gives the number of values and the reason, `missed` the same of tensors
    that can be read, though not as weights. `settings` are no weights, `folded` is in other tensors.
    """

    tensors: Mapping[str, torch.Tensor]
    described: Described
    converted: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    missed: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)


class _DenseTensors(Mapping[str, torch.Tensor]):
    """Tensors that are dequantised or made dense on access."""

    def __init__(
        self, source: str, tensors: Mapping[str, torch.Tensor], converted: Mapping[str, str]
    ) -> None:
        self._source, self._tensors, self._converted = source, tensors, converted

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._tensors[key]
        if key not in self._converted:
            return tensor
        with source_errors(f"{self._source}, '{key}'"):  # zero points out of range, for example
            if is_wrapper(tensor):
                return unwrap(tensor)
            return tensor.dequantize() if tensor.is_quantized else tensor.detach().to_dense()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _DecodedTensors(Mapping[str, torch.Tensor]):
    """Quantised weights, decoded from their parts on access, among a source's other tensors."""

    def __init__(
        self, source: str, tensors: Mapping[str, torch.Tensor], keys: Mapping[str, str | _Decode]
    ) -> None:
        self._source, self._tensors, self._keys = source, tensors, keys

    def __getitem__(self, key: str) -> torch.Tensor:
        stored = self._keys[key]
        if isinstance(stored, str):
            return self._tensors[stored]
        with source_errors(f"{self._source}, '{key}'"):
            return stored(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def decode_quantized(content: Content, source: str) -> Content:
    """Put quantised weights in the place of the first of their parts; count those that cannot be read."""
    found = find_quantized(content.described, content.tensors, content.converted)
    if not (found.read or found.unread or found.settings):
        return content
    gone = {part for x in found.read.values() for part in x.parts}
    described: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    keys: dict[str, str | _Decode] = {}
    converted = {key: how for key, how in content.converted.items() if key not in gone}
    for key, stored in content.described.items():
        if weight := found.read.get(key):
            described[weight.key] = weight.shape, weight.dtype
            keys[weight.key] = weight.decode
            if how := weight.how or content.converted.get(key):
                converted[weight.key] = how
        elif key not in gone:
            described[key], keys[key] = stored, key
    return replace(
        content,
        tensors=_DecodedTensors(source, content.tensors, keys),
        described=described,
        converted=converted,
        missed={key: (x.count, x.reason) for key, x in found.unread.items()},
        settings={
            **found.settings,
            **{key: reason for key, reason in found.parts.items() if key not in gone},
        },
        folded={key: found.parts[key] for key in gone if key in found.parts},
    )


def count_weights(content: Content) -> tuple[int, int]:
    """Return how many weights of a source are read, and how many are missed."""
    content = decode_quantized(content, "")
    read, missed = (
        0,
        sum(count for count, _ in (*content.unread.values(), *content.missed.values())),
    )
    for key, (shape, dtype) in content.described.items():
        if key in content.settings or key in content.missed:
            continue
        if dtype.is_floating_point:
            read += prod(shape)
        else:
            missed += unread_reason(key.rpartition(".")[2], shape, dtype)[1]
    return read, missed


def describe_content(
    tensors: Mapping[str, torch.Tensor],
    source: str,
    *,
    valued: bool = False,
    dense: int | None = None,
) -> Content:
    """Describe tensors in memory: quantised and sparse ones as dense, unknown forms as unread.

    With `valued`, tensors without values (meta device) are unread too. Sparse tensors beyond `dense`
    bytes (`DENSE` at most) are unread.
    """
    described, converted, unread = {}, {}, {}
    budget = DENSE if dense is None else min(DENSE, dense)
    for key, tensor in tensors.items():
        if reason := _unreadable_reason(tensor, valued):
            unread[key] = (tensor.numel(), reason)
            continue
        dtype = tensor.dtype
        if is_wrapper(tensor) or tensor.is_quantized:
            converted[key] = dequantized_from(tensor)
            dtype = torch.float32 if tensor.is_quantized else dtype
        elif tensor.layout != torch.strided:
            if (size := tensor.numel() * tensor.element_size()) > budget:
                unread[key] = (tensor.numel(), f"as a dense tensor it has {size} bytes, too many")
                continue
            converted[key], budget = "stored sparse, read dense", budget - size
        described[key] = (tuple(tensor.shape), dtype)
    readable = {key: tensors[key] for key in described} if unread or converted else tensors
    return Content(
        tensors=_DenseTensors(source, readable, converted) if converted else readable,
        described=described,
        converted=converted,
        unread=unread,
    )


def _unreadable_reason(tensor: torch.Tensor, valued: bool) -> str:
    if reason := getattr(tensor, "unread_reason", ""):
        return str(reason)
    if tensor.is_nested:
        return "nested tensors are not read"
    if is_wrapper(tensor) and not can_unwrap(tensor):
        return f"values of {type(tensor).__name__} are not read"
    if valued and tensor.is_meta:
        return "it has no values (meta device)"
    if tensor.is_quantized and not _has_valid_scales(tensor):
        return "its scales do not fit its channels"
    if tensor.dtype.is_floating_point and tensor.dtype not in FLOATS:
        return f"{tensor.dtype} values cannot be read"
    return ""


def _has_valid_scales(tensor: torch.Tensor) -> bool:
    if "tensor" in str(tensor.qscheme()):
        return True
    axis, scales = tensor.q_per_channel_axis(), tensor.q_per_channel_scales()
    return axis < tensor.dim() and len(scales) == tensor.shape[axis]
