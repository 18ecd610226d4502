"""bitsandbytes' 4-bit weights (NF4, FP4): codes of a table, a scale per block, which may be codes too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod
from typing import Any

import torch

from sane_plugins.quantization.stored import QuantizedTensor, Stored, Tensors, UnreadTensor

_MAX_STATE = 4096  # bytes of the JSON object that describes a weight
_CODES = 16
_KINDS = ("nf4", "fp4")
_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class _State:
    """What the JSON object in `W.quant_state.bitsandbytes__nf4` says."""

    shape: tuple[int, ...]
    block: int
    dtype: torch.dtype
    nested_block: int
    offset: float


def find_four_bit(key: str, stored: Stored) -> QuantizedTensor | UnreadTensor | None:
    """Recognise `W`, of any type, with `W.absmax`, `W.quant_map` and the state that tells its shape."""
    absmax = f"{key}.absmax"
    if absmax not in stored.described:
        return None
    table = f"{key}.quant_map"
    states = {kind: f"{key}.quant_state.bitsandbytes__{kind}" for kind in _KINDS}
    nested = f"{key}.nested_absmax", f"{key}.nested_quant_map"
    parts = stored.present(absmax, table, *nested, *states.values())
    nbytes = stored.size(key) * stored.dtype(key).itemsize
    kind = next((kind for kind, name in states.items() if name in stored.described), None)
    state = _read_state(stored, states[kind]) if kind else None
    if state is None or not _fits(stored, state, nbytes, absmax, table, nested):
        reason = "4-bit codes (bitsandbytes) without a description that fits"
        return UnreadTensor(key, prod(state.shape) if state else 2 * nbytes, reason, parts)
    return QuantizedTensor(
        key,
        state.shape,
        (key, *parts),
        f"dequantised from {kind}, one scale per {state.block} values",
        partial(_decode, key, state),
        state.dtype,
    )


def _read_state(stored: Stored, key: str) -> _State | None:
    if stored.dtype(key) != torch.uint8 or stored.size(key) > _MAX_STATE:
        return None
    try:
        told: Mapping[str, Any] = json.loads(bytes(stored.numbers(key, _MAX_STATE)))
        state = _State(
            tuple(told["shape"]),
            told["blocksize"],
            _TYPES[told["dtype"]],
            told.get("nested_blocksize", 1),
            told.get("nested_offset", 0.0),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = (*state.shape, state.block, state.nested_block)
    valid = all(type(n) is int and 0 < n < 2**48 for n in numbers) and prod(state.shape) < 2**48
    return state if valid and isinstance(state.offset, float) and isfinite(state.offset) else None


def _fits(
    stored: Stored,
    state: _State,
    nbytes: int,
    absmax: str,
    table: str,
    nested: tuple[str, str],
) -> bool:
    count = prod(state.shape)
    blocks = -(-count // state.block)
    if -(-count // 2) != nbytes or stored.size(absmax) != blocks:
        return False
    if not stored.present(table) or stored.size(table) != _CODES or not stored.is_real(table):
        return False
    if stored.is_real(absmax):
        return not stored.present(*nested)
    outer = -(-blocks // state.nested_block)
    return (
        len(stored.present(*nested)) == len(nested)
        and stored.dtype(absmax) == torch.uint8
        and all(map(stored.is_real, nested))
        and (stored.size(nested[0]), stored.size(nested[1])) == (outer, 256)
    )


def _decode(key: str, state: _State, tensors: Tensors) -> torch.Tensor:
    packed = tensors[key].contiguous().reshape(-1).view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], -1).reshape(-1)[: prod(state.shape)]
    table = tensors[f"{key}.quant_map"].float().reshape(-1)
    scales = tensors[f"{key}.absmax"].reshape(-1)
    if not scales.dtype.is_floating_point:
        outer = tensors[f"{key}.nested_absmax"].float().reshape(-1)
        steps = tensors[f"{key}.nested_quant_map"].float().reshape(-1)[scales.int()]
        scales = steps * _per_value(outer, state.nested_block, len(steps)) + state.offset
    values = table[codes.int()] * _per_value(scales.float(), state.block, len(codes))
    return values.reshape(state.shape).to(state.dtype)


def _per_value(scales: torch.Tensor, block: int, count: int) -> torch.Tensor:
    """Return the scale of each of `count` values."""
    return scales.repeat_interleave(min(block, count))[:count]
