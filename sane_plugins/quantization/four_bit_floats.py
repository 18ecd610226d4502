"""Four-bit floats (E2M1), two in a byte: plain ones, NVFP4 and MXFP4 with their blocks' scales."""

from __future__ import annotations

from functools import partial
from math import prod

import torch

from sane_plugins.quantization.block_scales import as_float, spread
from sane_plugins.quantization.stored import (
    EXPONENTS,
    FLOAT4,
    FLOAT8,
    QuantizedTensor,
    Stored,
    Tensors,
    UnreadTensor,
)

_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float32)
_TABLE = torch.cat([_VALUES, -_VALUES])
_NVFP4_BLOCK, _MX_BLOCK = 16, 32  # values of a row that share a scale
_PACKED = "_packed"  # compressed-tensors' name of a packed weight
_NO_LAYOUT = "4-bit floats whose scales do not fit"


def find_float4(key: str, stored: Stored) -> QuantizedTensor | UnreadTensor | None:
    """Recognise `W` or `W_packed` with one scale per block of a row, and NVFP4's scale of all blocks.

    `W_scale_2` (ModelOpt) multiplies, `W_global_scale` (compressed-tensors) divides.
    """
    dtype, shape = stored.dtype(key), stored.shape(key)
    if dtype not in (torch.uint8, FLOAT4) or not shape:
        return None
    stem = key.removesuffix(_PACKED)
    scale = stored.first(f"{stem}_scale")
    if not scale:
        return _plain(key, stored) if dtype == FLOAT4 else None
    if dtype == torch.uint8 and stored.dtype(scale) not in EXPONENTS | FLOAT8:
        return None
    factor, divisor = stored.first(f"{stem}_scale_2"), stored.first(f"{stem}_global_scale")
    parts = stored.present(scale, f"{stem}_scale_2", f"{stem}_global_scale")
    values = (*shape[:-1], 2 * shape[-1])
    block = _block(values, stored.shape(scale))
    is_mx = stored.dtype(scale) in EXPONENTS and block == _MX_BLOCK and len(parts) == 1
    is_nv = stored.dtype(scale) == torch.float8_e4m3fn and block == _NVFP4_BLOCK
    is_nv = is_nv and len(parts) == 2 and all(stored.size(part) == 1 for part in parts[1:])
    if not (is_mx or is_nv) or (stem != key and stem in stored.described):
        return UnreadTensor(key, _true_count(stored, key, scale), _NO_LAYOUT, parts)
    form = "MXFP4" if is_mx else "NVFP4"
    return QuantizedTensor(
        stem,
        values,
        (key, *parts),
        f"dequantised from 4-bit floats ({form}), one scale per block of {block}",
        partial(_scaled, key, scale, factor, divisor),
    )


def find_float4_blocks(key: str, stored: Stored) -> QuantizedTensor | UnreadTensor | None:
    """Recognise experts in MXFP4 as gpt-oss has them: `W_blocks` (E, out, G, 16) and `W_scales` (E, out, G).

    The weight is (E, in, out), as the module has it.
    """
    stem = key.removesuffix("_blocks")
    scale, shape = f"{stem}_scales", stored.shape(key)
    if stem == key or scale not in stored.described or stored.dtype(key) != torch.uint8:
        return None
    fits = len(shape) == 4 and shape[3] == _MX_BLOCK // 2 and stored.shape(scale) == shape[:3]
    if not fits or stored.dtype(scale) not in EXPONENTS or stem in stored.described:
        return UnreadTensor(key, 2 * prod(shape), _NO_LAYOUT, (scale,))
    return QuantizedTensor(
        stem,
        (shape[0], shape[2] * _MX_BLOCK, shape[1]),
        (key, scale),
        f"dequantised from 4-bit floats (MXFP4), one scale per block of {_MX_BLOCK}",
        partial(_blocks, key, scale),
    )


def decode_float4(packed: torch.Tensor) -> torch.Tensor:
    """Return the values of packed 4-bit floats, two for each byte of the last axis, the low half first."""
    codes = packed.view(torch.uint8)
    pairs = torch.stack([codes & 15, codes >> 4], -1)
    return _TABLE.to(codes.device)[pairs.int()].reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _plain(key: str, stored: Stored) -> QuantizedTensor:
    shape = stored.shape(key)
    values = (*shape[:-1], 2 * shape[-1])
    return QuantizedTensor(key, values, (key,), "read from 4-bit floats", partial(_unpack, key))


def _block(values: tuple[int, ...], scales: tuple[int, ...]) -> int:
    """Return how many values of a row share a scale; 0 where the shapes do not fit."""
    fits = values[:-1] == scales[:-1] and scales[-1] and values[-1] % scales[-1] == 0
    return values[-1] // scales[-1] if fits else 0


def _true_count(stored: Stored, key: str, scale: str) -> int:
    """Return the number of weights: two in a byte, or four in three (6-bit floats with MX scales)."""
    size = stored.size(key)
    is_six_bits = 4 * size == 3 * _MX_BLOCK * stored.size(scale)
    return 4 * size // 3 if is_six_bits else 2 * size


def _unpack(key: str, tensors: Tensors) -> torch.Tensor:
    return decode_float4(tensors[key])


def _scaled(
    key: str, scale: str, factor: str | None, divisor: str | None, tensors: Tensors
) -> torch.Tensor:
    values, scales = decode_float4(tensors[key]), as_float(tensors[scale])
    if factor:
        scales = scales * tensors[factor].float().reshape(())
    if divisor:
        scales = scales / tensors[divisor].float().reshape(())
    return values * spread(scales, values.shape)


def _blocks(key: str, scale: str, tensors: Tensors) -> torch.Tensor:
    packed, scales = tensors[key], as_float(tensors[scale])
    experts, rows = packed.shape[:2]
    values = decode_float4(packed) * scales[..., None]
    return values.reshape(experts, rows, -1).transpose(1, 2).contiguous()
