"""Lazy tensors of a safetensors file: the header is checked on opening, a tensor is read on access.

`safetensors.safe_open` is not used here. It maps the file: truncating the file then kills the process
(SIGBUS), and overwriting it changes tensors that were read before. It also accepts duplicate names, and
refuses a whole file for one unknown type.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from sane_plugins.formats.dequantize import FLOATS
from sane_plugins.formats.guards import open_until_collected, reopen_later, source_errors
from sane_plugins.formats.limits import (
    parse_json,
    require_json_size,
    require_shape,
    require_tensor_count,
)

_MAX_TYPE_NAME = 40
_CHUNK = 2**22  # bytes compared at a time
_INCOMPLETE = "it is no whole safetensors file"
_TYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "C128": "complex128",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """A tensor's byte range in a file; `dtype` is None for a type that torch cannot compute with."""

    dtype_name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    end: int


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors of a safetensors file, read on access.

    The file stays open, so that the path may be replaced meanwhile. Raises `SourceError` for an
    incomplete file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with source_errors(path, _INCOMPLETE, "a complete one"):
            self._file = open_until_collected(self, path)
            self.size = os.fstat(self._file.fileno()).st_size
            self.metadata, self.entries = _read_header(path, self._file, self.size)
        self._keys = [key for key, entry in self.entries.items() if entry.dtype is not None]
        self._lock = Lock()

    def __getitem__(self, key: str) -> torch.Tensor:
        entry = self.entries[key]
        if entry.dtype is None:
            raise KeyError(key)
        with source_errors(self.path, _INCOMPLETE, "a complete one"):
            data = torch.empty(entry.end - entry.start, dtype=torch.uint8)
            with self._lock:
                self._file.seek(entry.start)
                if self._file.readinto(data.numpy().data) != len(data):
                    raise ValueError("the file became shorter")
            return data.view(entry.dtype).reshape(entry.shape)

    def same_values(self, key: str, other: LazyTensors, other_key: str) -> bool:
        """Return whether two tensors have one type and shape, and the same bytes."""
        one, two = self.entries[key], other.entries[other_key]
        if (one.dtype_name, one.shape) != (two.dtype_name, two.shape):
            return False
        return all(
            self._read(one.start + done, min(_CHUNK, one.end - one.start - done))
            == other._read(two.start + done, min(_CHUNK, one.end - one.start - done))
            for done in range(0, one.end - one.start, _CHUNK)
        )

    def _read(self, start: int, count: int) -> bytes:
        with source_errors(self.path), self._lock:
            self._file.seek(start)
            return self._file.read(count)

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen_later(LazyTensors, self.path, self._file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def describe(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return a tensor's shape and type without reading it."""
        entry = self.entries[key]
        if entry.dtype is None:
            raise KeyError(key)
        return entry.shape, entry.dtype


def _read_header(
    path: Path, file: Any, size: int
) -> tuple[Mapping[str, str], dict[str, HeaderEntry]]:
    """Return metadata and entries in the order of their offsets, which must cover the file without gaps."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise ValueError("the header is longer than the file")
    require_json_size(path, length)
    text = file.read(length)
    require_tensor_count(path, text.count(b'"data_offsets"'))  # quicker than parsing
    header = parse_json(path, text)
    metadata = header.pop("__metadata__", {})
    require_tensor_count(path, len(header))
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata are text")
    unsorted_entries = {
        key: _parse_entry(path, key, record, 8 + length) for key, record in header.items()
    }
    entries = dict(sorted(unsorted_entries.items(), key=lambda pair: (pair[1].start, pair[1].end)))
    next_start = 8 + length
    for entry in entries.values():
        if entry.start != next_start:
            raise ValueError("tensors overlap, or leave room")
        next_start = entry.end
    if next_start != size:
        raise ValueError("the file has another length than its tensors")
    return metadata, entries


def _parse_entry(path: Path, key: str, record: Any, base: int) -> HeaderEntry:
    dtype_name, shape, (start, end) = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(dtype_name, str) or len(dtype_name) > _MAX_TYPE_NAME:
        raise ValueError("a type is a short word")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, end)) or end < start:
        raise ValueError("sizes are whole numbers")
    require_shape(path, f"'{key}'", shape)
    if dtype_name == "F4":
        if not shape or shape[-1] % 2:
            raise ValueError("4-bit values come in pairs")
        shape = [*shape[:-1], shape[-1] // 2]  # torch counts the bytes
    dtype = getattr(torch, _TYPES.get(dtype_name, ""), None)
    size = prod(shape)
    if size > 8 * (end - start) if dtype is None else size * dtype.itemsize != end - start:
        raise ValueError("a tensor has another size than its shape")
    if dtype is not None and dtype.is_floating_point and dtype not in FLOATS:
        dtype = None
    return HeaderEntry(dtype_name, dtype, tuple(shape), base + start, base + end)
