"""Integers of 1 to 8 bits packed in 32: GPTQ, AWQ and compressed-tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import torch

from sane_plugins.quantization.stored import (
    QuantizedTensor,
    Stored,
    Tensors,
    UnreadTensor,
    split_key,
)

_WORD = 32  # bits
_USUAL_BITS = 4
_SPARSE_THREES = 10  # values of 3 bits in a word, as they were packed once
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where value i of a word lies in it
_MIN_ZEROS = 8  # zero points that must agree to tell GPTQ's two versions apart
Found = QuantizedTensor | UnreadTensor | None


def find_packed_layer(key: str, stored: Stored) -> Found:
    """Recognise `qweight` with `scales` and `qzeros`: GPTQ packs along the inputs, AWQ along the outputs.

    GPTQ's first version stores zero points less one and its second does not, and no file says which it is
    in: it is read where all of them are the middle of one of the two, and else missed.
    """
    layer, attribute = split_key(key)
    if attribute != "qweight":
        return None
    scale, zero, order = (f"{layer}{name}" for name in ("scales", "qzeros", "g_idx"))
    parts = stored.present(scale, zero, order)
    bits = _zero_bits(stored, scale, zero)
    count = stored.size(key) * _WORD // (bits or _bits_of_order(stored, key, order))
    if stored.dtype(key) != torch.int32 or not bits or f"{layer}weight" in stored.described:
        return UnreadTensor(key, count, _reason("no zero points that fit"), parts)
    read = _awq(key, stored, bits) or _gptq(key, stored, bits)
    return read or UnreadTensor(key, count, _reason("their zero points, or order, are open"), parts)


def find_packed_weight(key: str, stored: Stored) -> Found:
    """Recognise compressed-tensors' `W_packed` with `W_scale` and `W_shape`."""
    stem = key.removesuffix("_packed")
    if stem == key or stored.dtype(key) != torch.int32:
        return None
    scale, zero, order, told = (
        f"{stem}_{name}" for name in ("scale", "zero_point", "g_idx", "shape")
    )
    parts = stored.present(scale, zero, order, told)
    shape = tuple(stored.numbers(told)) if told in stored.described else ()
    is_shape = len(shape) == 2 and all(n > 0 for n in shape) and prod(shape) < 2**48
    bits = _row_bits(shape[1], stored.shape(key)) if is_shape else 0
    if not bits or not _fits(stored, shape, bits, key, scale, zero, order):
        fallback = stored.size(key) * _WORD // _USUAL_BITS
        count = prod(shape) if is_shape and prod(shape) <= _WORD * stored.size(key) else fallback
        return UnreadTensor(key, count, _reason("their scales or shape do not fit"), parts)
    if stem in stored.described:
        return UnreadTensor(key, prod(shape), _reason(f"a tensor '{stem}' is there too"), parts)
    zero_key = zero if zero in stored.described else None
    order_key = order if order in stored.described else None
    return QuantizedTensor(
        stem,
        shape,
        (key, *parts),
        f"dequantised from {bits}-bit integers (compressed-tensors)",
        partial(_compressed, key, scale, zero_key, order_key, bits, (shape[0], shape[1])),
    )


def find_packed_rows(key: str, stored: Stored) -> Found:
    """Recognise quanto's packed `W._data._data` with `W._scale`: the weight's shape is not stored."""
    stem = key.removesuffix("._data._data")
    scale, shift = f"{stem}._scale", f"{stem}._shift"
    if stem == key or scale not in stored.described or stored.dtype(key) != torch.uint8:
        return None
    shape, scales = stored.shape(key), stored.shape(scale)
    rows = scales[0] if len(scales) == 2 and len(shape) == 2 else 0
    count = rows * shape[1] if shape and shape[0] < rows <= 8 * shape[0] else 2 * stored.size(key)
    parts = stored.present(scale, shift)
    reason = "quantised weights packed in bytes (quanto): their shape is not stored"
    return UnreadTensor(key, count, reason, parts, stem)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the unsigned values of 32-bit words on a new last axis, the lowest bits first."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32, device=words.device)
    values: torch.Tensor = (words[..., None] >> shifts) & (2**bits - 1)
    return values


def _zero_bits(stored: Stored, scale: str, zero: str) -> int:
    """Return the bits of a value: zero points are packed along the outputs, scales are not."""
    if len(stored.present(scale, zero)) < 2 or stored.dtype(zero) != torch.int32:
        return 0
    scales, zeros = stored.shape(scale), stored.shape(zero)
    if len(scales) != 2 or len(zeros) != 2 or scales[0] != zeros[0] or not scales[1]:
        return 0
    bits, rest = divmod(_WORD * zeros[1], scales[1])
    return bits if not rest and 0 < bits <= 8 and stored.is_real(scale) else 0


def _bits_of_order(stored: Stored, key: str, order: str) -> int:
    """Return the bits of a value by the number of inputs, which `g_idx` has; 4 where it does not fit."""
    shape = stored.shape(key)
    if order in stored.described and stored.size(order) and shape:
        bits, rest = divmod(_WORD * shape[0], stored.size(order))
        if not rest and 0 < bits <= 8:
            return bits
    return _USUAL_BITS


def _awq(key: str, stored: Stored, bits: int) -> QuantizedTensor | None:
    layer, _ = split_key(key)
    scale, zero, order = (f"{layer}{name}" for name in ("scales", "qzeros", "g_idx"))
    shape, (groups, outputs) = stored.shape(key), stored.shape(scale)
    fits = bits == _USUAL_BITS and len(shape) == 2 and shape[1] * _WORD == outputs * bits
    if not fits or not groups or shape[0] % groups or order in stored.described:
        return None
    return QuantizedTensor(
        f"{layer}weight",
        (outputs, shape[0]),
        (key, scale, zero),
        "dequantised from 4-bit integers (AWQ)",
        partial(_decode_awq, key, scale, zero),
    )


def _gptq(key: str, stored: Stored, bits: int) -> QuantizedTensor | None:
    layer, _ = split_key(key)
    scale, zero, order = (f"{layer}{name}" for name in ("scales", "qzeros", "g_idx"))
    shape, (groups, outputs) = stored.shape(key), stored.shape(scale)
    if len(shape) != 2 or shape[1] != outputs or _WORD % bits:
        return None
    inputs = shape[0] * _WORD // bits
    ordered = order in stored.described
    if ordered and not _is_order(stored, order, inputs, groups):
        return None
    if not ordered and (not groups or inputs % groups):
        return None
    words = stored.tensors[zero]
    if words.is_meta:
        return None
    zeros = unpack(words, bits)
    middle = 2 ** (bits - 1)
    if zeros.numel() < _MIN_ZEROS or int(zeros.min()) != int(zeros.max()):
        return None
    if int(zeros.max()) not in (middle - 1, middle):
        return None
    return QuantizedTensor(
        f"{layer}weight",
        (outputs, inputs),
        stored.present(key, scale, zero, order),
        f"dequantised from {bits}-bit integers (GPTQ)",
        partial(_decode_gptq, key, scale, order if ordered else None, bits),
    )


def _is_order(stored: Stored, key: str, inputs: int, groups: int) -> bool:
    """Return whether a tensor names a group for each input."""
    if stored.shape(key) != (inputs,) or stored.dtype(key) not in (torch.int32, torch.int64):
        return False
    values = stored.tensors[key]
    return (
        inputs > 0 and not values.is_meta and int(values.min()) >= 0 and int(values.max()) < groups
    )


def _row_bits(columns: int, packed: Sequence[int]) -> int:
    """Return how many bits a value has in a row of words; 0 where several sizes give as many words."""
    if len(packed) != 2:
        return 0
    dense = {bits: -(-columns * bits // _WORD) for bits in range(1, 9)}
    fits = [bits for bits, words in dense.items() if words == packed[1]]
    if packed[1] == -(-columns // _SPARSE_THREES):
        fits.append(3)
    return fits[0] if len(fits) == 1 and _WORD % fits[0] == 0 else 0


def _fits(
    stored: Stored, shape: tuple[int, ...], bits: int, key: str, scale: str, zero: str, order: str
) -> bool:
    rows, columns = shape
    if stored.shape(key)[0] != rows or scale not in stored.described or not stored.is_real(scale):
        return False
    scales = stored.shape(scale)
    if len(scales) != 2 or scales[0] != rows or not scales[1] or columns % scales[1]:
        return False
    if zero in stored.described:
        words = (-(-rows * bits // _WORD), scales[1])
        if stored.dtype(zero) != torch.int32 or stored.shape(zero) != words:
            return False
    return order not in stored.described or _is_order(stored, order, columns, scales[1])


def _decode_awq(key: str, scale: str, zero: str, tensors: Tensors) -> torch.Tensor:
    values, zeros = (
        unpack(tensors[name], _USUAL_BITS)[..., _AWQ_ORDER].flatten(1) for name in (key, zero)
    )
    scales = tensors[scale].float()
    group = len(values) // len(scales)
    zeros, scales = (x.repeat_interleave(group, 0) for x in (zeros, scales))
    weight: torch.Tensor = (values - zeros) * scales
    return weight.T.contiguous()


def _decode_gptq(
    key: str, scale: str, order: str | None, bits: int, tensors: Tensors
) -> torch.Tensor:
    words, scales = tensors[key], tensors[scale].float()
    values = unpack(words, bits).transpose(1, 2).reshape(-1, words.shape[1])
    if order:
        scales = scales[tensors[order].long()]
    else:
        scales = scales.repeat_interleave(len(values) // len(scales), 0)
    weight: torch.Tensor = (values - 2 ** (bits - 1)) * scales
    return weight.T.contiguous()


def _compressed(
    key: str,
    scale: str,
    zero: str | None,
    order: str | None,
    bits: int,
    shape: tuple[int, int],
    tensors: Tensors,
) -> torch.Tensor:
    rows, columns = shape
    values = unpack(tensors[key], bits).flatten(1)[:, :columns]
    scales = tensors[scale].float()
    zeros = torch.full_like(scales, 2 ** (bits - 1))
    if zero:
        zeros = unpack(tensors[zero].T, bits).flatten(1)[:, :rows].T.float()
    if order:
        index = tensors[order].long()
        return (values - zeros[:, index]) * scales[:, index]
    group = columns // scales.shape[1]
    zeros, scales = (x.repeat_interleave(group, 1) for x in (zeros, scales))
    return (values - zeros) * scales


def _reason(open_question: str) -> str:
    return f"quantised weights packed in 32-bit integers: {open_question}"
