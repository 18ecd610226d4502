"""Values of 8 bits beside their scale: FP8, int8, MXFP8, and the tensors of torchao, quanto, bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from sane_plugins.quantization.block_scales import block_shape, spread
from sane_plugins.quantization.stored import (
    EXPONENTS,
    FLOAT8,
    QuantizedTensor,
    Stored,
    Tensors,
    UnreadTensor,
    split_key,
)

Found = QuantizedTensor | UnreadTensor | None
_NO_FIT = "its scales do not fit its shape"


@dataclass(frozen=True)
class _Names:
    """The weight's own name, and where its scale and zero point may be."""

    weight: str
    scales: tuple[str, ...]
    zero: str


def find_scaled(key: str, stored: Stored) -> Found:
    """Recognise an 8-bit tensor whose scale lies beside it: `W_scale`, `W_scale_inv`, `scale_W`, `W._scale`.

    All of them multiply, `scale_inv` too: it is the inverse of what the weight was divided by.
    """
    dtype = stored.dtype(key)
    if dtype not in FLOAT8 | {torch.int8, torch.uint8}:
        return None
    names = _names(key, dtype)
    if not (scale := stored.first(*names.scales)):
        return _find_unread(key, stored)
    zero = stored.first(names.zero)
    parts = stored.present(scale, names.zero)
    if names.weight != key and names.weight in stored.described:
        return _unread(stored, key, f"a tensor '{names.weight}' is there too", parts)
    if not _scale_fits(stored, key, scale, zero) or (dtype == torch.uint8 and not zero):
        return _unread(stored, key, _NO_FIT, parts)
    return QuantizedTensor(
        names.weight,
        stored.shape(key),
        (key, *parts),
        f"dequantised from {_name(dtype)}, {_granularity(stored, key, scale)}",
        partial(_scaled, key, scale, zero),
    )


def find_vectorwise(key: str, stored: Stored) -> Found:
    """Recognise LLM.int8's rows: `SCB` is 127 scales of each; other formats than 0 are reordered."""
    layer, attribute = split_key(key)
    scale, order = f"{layer}SCB", f"{layer}weight_format"
    if attribute != "weight" or stored.dtype(key) != torch.int8 or scale not in stored.described:
        return None
    parts = stored.present(scale, order)
    rows = stored.shape(key)[:1]
    if stored.shape(scale) != rows or not stored.is_real(scale):
        return _unread(stored, key, _NO_FIT, parts)
    if order in stored.described and stored.numbers(order) != [0]:
        return _unread(stored, key, "it is reordered for one kind of processor", parts)
    return QuantizedTensor(
        key,
        stored.shape(key),
        (key, *parts),
        "dequantised from int8, one scale per channel",
        partial(_vectorwise, key, scale),
    )


def _names(key: str, dtype: torch.dtype) -> _Names:
    layer, attribute = split_key(key)
    if attribute == "_data":  # quanto
        stem = layer.removesuffix(".")
        return _Names(stem, (f"{layer}_scale",), f"{layer}_shift")
    if attribute in ("qdata", "int_data", "float8_data"):  # torchao's tensors, taken apart
        stem = layer.removesuffix(".").removesuffix(".tensor_impl")
        return _Names(stem, (f"{layer}scale",), f"{layer}zero_point")
    if attribute.startswith("_") and attribute.endswith("_qdata"):  # torchao's safetensors
        stem = attribute[1:].removesuffix("_qdata")
        return _Names(f"{layer}{stem}", (f"{layer}_{stem}_scale",), f"{layer}_{stem}_zero_point")
    scales: tuple[str, ...] = (f"{key}_scale", f"{key}_scale_inv", f"{layer}scale_{attribute}")
    if dtype in FLOAT8 and attribute == "weight":
        scales += (f"{layer}scale",)
    return _Names(key, scales, f"{key}_zero_point")


def _scale_fits(stored: Stored, key: str, scale: str, zero: str | None) -> bool:
    shape, scales = stored.shape(key), stored.shape(scale)
    powers = stored.dtype(scale) in EXPONENTS
    if not stored.is_real(scale) and not (powers and stored.dtype(key) in FLOAT8):
        return False
    if powers and _names(key, stored.dtype(key)).weight != key:
        return False  # torchao may have reordered them
    if zero and (stored.dtype(zero).is_floating_point or stored.shape(zero) != scales):
        return False
    return block_shape(shape, scales) is not None


def _find_unread(key: str, stored: Stored) -> Found:
    """Recognise EETQ's and others' `W_scales`: which axis they are for, and the order, are not known."""
    layer, _ = split_key(key)
    scales = stored.present(f"{key}_scales", f"{layer}scales")
    found = len(stored.shape(key)) > 1 and scales
    return _unread(stored, key, "the order of its values is not known", scales) if found else None


def _unread(stored: Stored, key: str, reason: str, parts: tuple[str, ...]) -> UnreadTensor:
    return UnreadTensor(key, stored.size(key), f"quantised weights: {reason}", parts)


def _granularity(stored: Stored, key: str, scale: str) -> str:
    shape = stored.shape(key)
    if stored.size(scale) == 1:
        return "one scale"
    blocks = block_shape(shape, stored.shape(scale)) or ()
    if all(block in (1, size) for block, size in zip(blocks, shape, strict=True)):
        return "one scale per channel"
    return f"one scale per block of {'x'.join(map(str, blocks))}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _scaled(key: str, scale: str, zero: str | None, tensors: Tensors) -> torch.Tensor:
    values = tensors[key].float()
    if zero:
        values = values - spread(tensors[zero].float(), values.shape)
    return values * spread(tensors[scale], values.shape)


def _vectorwise(key: str, scale: str, tensors: Tensors) -> torch.Tensor:
    values, scales = tensors[key].float(), tensors[scale].float() / 127
    return values * spread(scales, values.shape)
