"""NumPy arrays in pickles, whose values lie in the pickle itself."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sane_plugins.formats.limits import expanded_bytes
from sane_plugins.formats.torch_files.checkpoint_limits import size_error
from sane_plugins.formats.torch_files.inert_pickle import Inert
from sane_plugins.formats.torch_files.pickle_scan import PickledTensor, Storage, integers

_RECONSTRUCT = re.compile(r"numpy\.(core|_core)\.multiarray\._reconstruct")
_FROM_BUFFER = re.compile(r"numpy\.(core|_core)\.numeric\._frombuffer")
_BYTES = ("_codecs.encode", "builtins.bytes", "builtins.bytearray")
_CODE = re.compile(r"[<>=|]?([fiu][1248]|b1|c8|c16)")


class ArrayStorages:
    """The values of pickled arrays as storages, each made once however many arrays share it."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self._path, self._most, self._total = path, expanded_bytes(nbytes), 0
        self._made: dict[str, torch.UntypedStorage] = {}

    def __getitem__(self, key: str) -> torch.UntypedStorage:
        return self._made[key]

    def tensor(self, record: Any) -> PickledTensor | None:
        """Return the tensor of an array's record; None for other records and arrays of no numbers.

        Raises `ValueError` where it holds another number of values than its shape says, and `SourceError`
        where all arrays together are larger than a file of its size may hold.
        """
        told = _told(record)
        if told is None:
            return None
        shape, columns, dtype, source = told
        values = self._storage(source, dtype)
        storage = Storage(values[0], values[1], prod(shape))
        if storage.nbytes != self[storage.key].nbytes():
            raise ValueError("another number of values than the shape says")
        self._total += storage.nbytes
        if self._total > self._most:  # many arrays of the same values
            raise size_error(self._path, self._total, self._most)
        return PickledTensor(storage, storage.dtype, 0, shape, _strides(shape, columns))

    def _storage(self, source: Any, dtype: np.dtype[Any]) -> tuple[str, torch.dtype]:
        native = dtype.newbyteorder("=")
        key = f"array {id(source)}{'' if dtype == native else dtype.str}"
        if key not in self._made:
            data = to_bytes(source)
            swapped = (
                data if dtype == native else np.frombuffer(data, dtype).astype(native).tobytes()
            )
            self._made[key] = in_memory(swapped)
        return key, torch.from_numpy(np.empty(0, native)).dtype


def in_memory(data: bytes) -> torch.UntypedStorage:
    """Return a storage of its own for some bytes."""
    if not data:
        return torch.UntypedStorage(0)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()


def _told(record: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any], Any] | None:
    """Return shape, whether columns come first, type and source of an array's values."""
    if not isinstance(record, Inert):
        return None
    if _RECONSTRUCT.fullmatch(record.name) and isinstance(record.state, tuple):
        _, shape, kind, columns, source = record.state[-5:]
    elif _FROM_BUFFER.fullmatch(record.name):
        source, kind, shape, order = record.args[:4]
        columns = order == "F"
    else:
        return None
    dtype = _dtype(kind)
    return None if dtype is None else (integers(shape), bool(columns), dtype, bytes_source(source))


def _dtype(record: Any) -> np.dtype[Any] | None:
    """Return a pickled type of numbers; None for any other (objects, texts, dates, records)."""
    if not isinstance(record, Inert) or record.name != "numpy.dtype" or not record.args:
        return None
    code, state = record.args[0], record.state
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return None
    is_big = isinstance(state, tuple) and state[1:2] == (">",)
    found: np.dtype[Any] = np.dtype(code).newbyteorder(">" if is_big else "<")
    return found


def bytes_source(values: Any) -> Any:
    """Return the bytes of a record, or the text that stands for bytes in old protocols."""
    for _ in range(2):  # a bytearray is made of bytes
        if isinstance(values, Inert) and values.name in _BYTES:
            values = values.args[0] if values.args else b""
    return values


def to_bytes(source: Any) -> bytes:
    """Return the bytes of what `bytes_source` returned."""
    if isinstance(source, str):
        return source.encode("latin-1")
    if not isinstance(source, bytes | bytearray):
        raise ValueError("no values")
    return bytes(source)


def _strides(shape: tuple[int, ...], columns: bool) -> tuple[int, ...]:
    strides, step = [], 1
    for size in shape if columns else reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(strides if columns else reversed(strides))
