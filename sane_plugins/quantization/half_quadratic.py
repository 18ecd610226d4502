"""HQQ's weights: codes of 1 to 8 bits, packed by rows, whose settings are tensors beside them."""

from __future__ import annotations

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

_SETTINGS = ["nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero"]
_REASON = "quantised weights (HQQ) whose settings are not in the file, or of another kind"


def find_half_quadratic(key: str, stored: Stored) -> QuantizedTensor | UnreadTensor | None:
    """Recognise `W_q` with `scale`, `zero` and the settings that HQQ encodes as tensors."""
    layer, attribute = split_key(key)
    scale, zero, target = f"{layer}scale", f"{layer}zero", f"{layer}weight"
    if attribute != "W_q":
        return None
    parts = stored.present(scale, zero, *(f"{layer}{name}" for name in _SETTINGS))

    def setting(name: str) -> list[int]:
        found = f"{layer}{name}"
        return stored.numbers(found) if found in stored.described else []

    bits, shape = sum(setting("nbits")), tuple(setting("shape"))
    group, axis = sum(setting("group_size")), setting("axis")
    plain = setting("view_as_float") == [0] and setting("packing") == _packing(bits)
    plain = plain and not any(setting("quant_scale") + setting("quant_zero"))
    known = plain and group > 0 and axis in ([0], [1]) and all(0 < n < 2**24 for n in shape)
    count = prod(shape)
    rows = (group if axis == [0] else count // group) if known else 0
    grid = (rows, count // rows) if known and rows and count % rows == 0 else None
    if not grid or target in stored.described or not _fits(stored, key, grid, bits, scale, zero):
        return UnreadTensor(key, _true_count(stored, key, count, scale), _REASON, parts)
    return QuantizedTensor(
        target,
        shape,
        (key, *parts),
        f"dequantised from {bits}-bit integers (HQQ), one scale per {group} values",
        partial(_decode, key, scale, zero, bits, grid[0], shape),
    )


def _packing(bits: int) -> list[int]:
    """Return the name of a packing as HQQ encodes it: the codes of its letters."""
    return [*(b"3bit_32" if bits == 3 else f"{bits}bit_u8".encode())]


def _values_per_word(bits: int) -> int:
    return 10 if bits == 3 else 8 // bits


def _fits(
    stored: Stored, key: str, grid: tuple[int, int], bits: int, scale: str, zero: str
) -> bool:
    if bits not in (1, 2, 3, 4, 8) or len(stored.present(scale, zero)) < 2:
        return False
    word = torch.int32 if bits == 3 else torch.uint8
    packed = (-(-grid[0] // _values_per_word(bits)), grid[1])
    grouped = all(
        stored.is_real(part) and stored.shape(part) in ((grid[0], 1), (1, grid[1]))
        for part in (scale, zero)
    )
    return grouped and stored.dtype(key) == word and stored.shape(key) == packed


def _true_count(stored: Stored, key: str, told: int, scale: str) -> int:
    """Return the number of weights: as told, else by the rows that have a scale, else two in a byte."""
    most = 10 * stored.size(key) * stored.dtype(key).itemsize
    if 1 < told <= most:
        return told
    shape = stored.shape(key)
    rows = stored.shape(scale)[0] if scale in stored.described and stored.shape(scale) else 0
    if len(shape) == 2 and shape[0] < rows <= 10 * shape[0]:
        return rows * shape[1]
    return 2 * stored.size(key) * stored.dtype(key).itemsize


def _decode(
    key: str,
    scale: str,
    zero: str,
    bits: int,
    rows: int,
    shape: tuple[int, ...],
    tensors: Tensors,
) -> torch.Tensor:
    words, most = tensors[key], bits * (_values_per_word(bits) - 1)
    # The first rows are in the highest bits.
    shifts = range(most, -1, -bits)
    codes = torch.cat([(words >> shift) & (2**bits - 1) for shift in shifts])[:rows]
    values = (codes.float() - tensors[zero].float()) * tensors[scale].float()
    return values.reshape(shape)
