"""Sparse weights as compressed-tensors stores them: the values that are not 0, and a bit for each place."""

from __future__ import annotations

from functools import partial
from math import prod

import torch

from sane_plugins.quantization.stored import FLOAT8, QuantizedTensor, Stored, Tensors, UnreadTensor


def find_bitmask(key: str, stored: Stored) -> QuantizedTensor | UnreadTensor | None:
    """Recognise `W.compressed` with `W.bitmask`, `W.shape` and `W.row_offsets`."""
    stem = key.removesuffix(".compressed")
    if stem == key or f"{stem}.bitmask" not in stored.described:
        return None
    mask, told, offsets = f"{stem}.bitmask", f"{stem}.shape", f"{stem}.row_offsets"
    scales = stored.present(f"{stem}_scale", f"{stem}_zero_point")
    parts = stored.present(mask, told, offsets)
    shape = tuple(stored.numbers(told)) if told in stored.described else ()
    places = stored.shape(mask)
    is_shape = len(shape) == 2 and min(shape) > 0
    fits = is_shape and places == (shape[0], -(-shape[1] // 8)) and len(stored.shape(key)) == 1
    fits = fits and stored.dtype(mask) == torch.uint8 and stem not in stored.described
    dtype = stored.dtype(key)
    if not fits or scales or not dtype.is_floating_point or dtype in FLOAT8:
        count = prod(shape) if is_shape and prod(shape) <= 8 * prod(places) else 8 * prod(places)
        reason = "sparse weights whose mask does not fit, or that are quantised too"
        return UnreadTensor(key, count, reason, (*parts, *scales))
    return QuantizedTensor(
        stem,
        shape,
        (key, *parts),
        "stored sparse, read dense",
        partial(_decode, key, mask, (shape[0], shape[1])),
        dtype,
    )


def _decode(key: str, mask: str, shape: tuple[int, int], tensors: Tensors) -> torch.Tensor:
    bits = (
        tensors[mask][..., None] >> torch.arange(8, dtype=torch.uint8, device=tensors[mask].device)
        & 1
    )
    places = bits.flatten(1)[:, : shape[1]].bool()
    values = tensors[key]
    if int(places.sum()) != len(values):
        raise ValueError("the mask has another number of places than there are values")
    return values.new_zeros(shape).masked_scatter_(places, values)
