"""NumPy files (`.npz`, `.npy`): arrays are read one at a time, pickled objects are refused."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.dequantize import Content
from sane_plugins.formats.guards import open_until_collected, reopen_later, source_errors
from sane_plugins.formats.limits import require_names, require_shape, require_tensor_count
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.weights import WeightGraph

_MAX_HEADER_BYTES = 2**16
_ITEM_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}


@dataclass(frozen=True)
class _ArrayHeader:
    """An array's header, and the offset of its values."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    columns: bool
    start: int

    @property
    def kind(self) -> torch.dtype | None:
        """Return the torch dtype, or None where torch has no equivalent."""
        if self.dtype.itemsize not in _ITEM_SIZES.get(self.dtype.kind, ()) or self.dtype.names:
            return None
        return torch.from_numpy(np.empty(0, self.dtype.newbyteorder("="))).dtype

    @property
    def reason(self) -> str:
        """Return why the array cannot be read."""
        if self.dtype.kind == "V":
            return f"raw values of {self.dtype.itemsize} bytes: NumPy does not say what they are (bfloat16?)"
        return f"{self.dtype} values cannot be read"


def open_array(path: Path) -> WeightGraph:
    """Open the array of an `.npy` file as `0`, as `open_arrays` does."""
    return _open(path, path, {"0": ""})


def open_arrays(path: Path, archive: Archive) -> WeightGraph:
    """Open the arrays of an `.npz` file by their names.

    Raises `SourceError` for a file that is broken, exceeds the limits, or holds pickled objects.
    """
    return _open(path, archive, array_names(archive))


def array_names(archive: Archive) -> dict[str, str]:
    """Return the arrays of an archive, mapped to their members."""
    return {name.removesuffix(".npy"): name for name in archive.members if name.endswith(".npy")}


def _open(path: Path, file: Archive | Path, names: Mapping[str, str]) -> WeightGraph:
    with source_errors(path):
        require_tensor_count(path, len(names), path.stat().st_size)
        require_names(path, names)
    with source_errors(path, "an array of it is broken", "a whole file that NumPy wrote"):
        headers = {key: (name, _read_array_header(path, file, name)) for key, name in names.items()}
        kinds = {key: array.kind for key, (_, array) in headers.items()}
        tensors = _LazyArrays(file, {key: entry for key, entry in headers.items() if kinds[key]})
        unread = {
            key: (_possible_weights(array), array.reason)
            for key, (_, array) in headers.items()
            if kinds[key] is None
        }
        content = Content(
            tensors=tensors,
            unread=unread,
            described={key: (headers[key][1].shape, kind) for key, kind in kinds.items() if kind},
        )
        return from_state_dict(tensors, str(path), container="npz", ties={}, content=content)


def _possible_weights(array: _ArrayHeader) -> int:
    """Return the number of values that may be weights; 0 for texts and dates."""
    return prod(array.shape) if array.dtype.kind in "Vf" and array.dtype.itemsize else 0


def _read_array_header(path: Path, file: Archive | Path, name: str) -> _ArrayHeader:
    """Read an array's header, and check that the file holds as many values as it promises."""
    if isinstance(file, Path):
        size = file.stat().st_size
        with file.open("rb") as opened:
            head = io.BytesIO(opened.read(_MAX_HEADER_BYTES))
    else:
        size, head = file.size(name), io.BytesIO(file.read_head(name, _MAX_HEADER_BYTES))
    version = npy.read_magic(head)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columns, dtype = read(head)
    if dtype.hasobject:
        raise SourceError(
            path,
            f"'{name or path.name}' holds pickled objects, which can run code",
            "only plain arrays are read",
            "save it as an array of numbers",
        )
    if min(shape, default=0) < 0:
        raise ValueError("sizes are whole numbers")
    require_shape(path, f"'{name or path.name}'", shape)
    if prod(shape) * dtype.itemsize != size - head.tell():
        raise ValueError("another number of values than the header tells")
    return _ArrayHeader(dtype, tuple(int(n) for n in shape), bool(columns), head.tell())


class _LazyArrays(Mapping[str, torch.Tensor]):
    """Arrays of a file as tensors, read on access."""

    def __init__(
        self, file: Archive | Path, headers: Mapping[str, tuple[str, _ArrayHeader]]
    ) -> None:
        self._file, self._headers, self._lock = file, headers, Lock()
        self._open = open_until_collected(self, file) if isinstance(file, Path) else None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._open is None:
            return _LazyArrays, (self._file, self._headers)
        assert isinstance(self._file, Path)
        return reopen_later(partial(_LazyArrays, headers=self._headers), self._file, self._open)

    def __getitem__(self, key: str) -> torch.Tensor:
        name, array = self._headers[key]
        path = self._file if isinstance(self._file, Path) else self._file.path
        with source_errors(path, f"'{key}' is broken", "a whole array"):
            values = np.frombuffer(bytearray(self._bytes(name, array)), array.dtype)
            values = values.reshape(array.shape, order="F" if array.columns else "C")
            native = values.astype(array.dtype.newbyteorder("="), copy=False)
            return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))

    def _bytes(self, name: str, array: _ArrayHeader) -> bytes:
        if self._open is None:
            assert isinstance(self._file, Archive)
            return self._file.read(name, array.start)
        with self._lock:
            self._open.seek(array.start)
            return self._open.read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)
