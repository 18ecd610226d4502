"""The header of a GGUF file, checked against the file's size before anything is believed.

The library's own reader maps the file, and takes counts and sizes as the file tells them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from sane_plugins.errors import SourceError
from sane_plugins.formats import require_names, require_shape, require_tensor_count
from sane_plugins.weights import MAX_AXES

VERSIONS = (2, 3)
STRINGS = 4_000_000  # of all arrays; vocabularies have some 250,000 words
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_TEXT = 1_000  # bytes of a text that is kept
_MAX_ALIGNMENT = 2**20
_MAX_VALUES_PER_BYTE = 8
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, Struct] = {
    kind: Struct(f"<{letter}")
    for kind, letter in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}.items()
} | {10: Struct("<Q"), 11: Struct("<q"), 12: Struct("<d")}
_COUNT, _NUMBER = Struct("<Q"), Struct("<I")


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's type number, its shape in torch's order, and where its bytes begin and must end."""

    kind: int
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The plain values of a file's metadata, and its tensors by name, in the order of the file."""

    metadata: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, TensorPlace] = field(default_factory=dict)


def read_header(path: Path, file: BinaryIO) -> Header:
    """Read and check a header.

    Raises `ValueError` for a broken one, `SourceError` for one that exceeds the limits or is not known.
    """
    return _HeaderReader(path, file).read()


class _HeaderReader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size
        self._strings = 0

    def read(self) -> Header:
        if self._bytes(4) != b"GGUF":
            raise SourceError(
                self._path,
                "this is no GGUF file",
                "a file that begins with GGUF is needed",
                "check that the download is complete and the suffix is right",
            )
        self._require_version(self._unpack(_NUMBER))
        tensor_count, entry_count = self._unpack(_COUNT), self._unpack(_COUNT)
        require_tensor_count(self._path, tensor_count, self._size)
        self._require_room(entry_count * (_COUNT.size + _NUMBER.size + 1))
        metadata = {}
        for _ in range(entry_count):
            key = self._text()
            value = self._value(self._unpack(_NUMBER))
            if value is not None:
                metadata[key] = value
        described = [self._tensor() for _ in range(tensor_count)]
        if len({name for name, *_ in described}) < tensor_count:
            raise ValueError("two tensors have one name")
        return Header(metadata, self._places(described, metadata.get("general.alignment", 32)))

    def _places(
        self, described: list[tuple[str, int, tuple[int, ...], int]], alignment: object
    ) -> dict[str, TensorPlace]:
        """Return where each tensor lies: between its offset and the next one, or the end of the file."""
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT:
            raise ValueError("its alignment is none")
        base = -(-self._file.tell() // alignment) * alignment
        starts = sorted({base + offset for *_, offset in described})
        ends = dict(zip(starts, [*starts[1:], self._size], strict=True))
        if len(starts) < sum(0 not in shape for _, _, shape, _ in described):
            raise ValueError("two tensors lie at one place")
        places = {}
        for name, kind, shape, offset in described:
            place = TensorPlace(kind, shape, base + offset, ends[base + offset])
            room = place.end - place.start
            if room < 0 or prod(shape) > _MAX_VALUES_PER_BYTE * room:
                raise ValueError("the file is shorter than its tensors")
            places[name] = place
        return places

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return a tensor's name, type, shape in torch's order, and offset."""
        name = self._text()
        require_names(self._path, [name])
        axes = self._unpack(_NUMBER)
        if axes > MAX_AXES:
            raise ValueError("a tensor has too many axes")
        shape = tuple(self._unpack(_COUNT) for _ in range(axes))[::-1]
        require_shape(self._path, f"'{name}'", shape)
        return name, self._unpack(_NUMBER), shape, self._unpack(_COUNT)

    def _value(self, kind: int, depth: int = 0) -> object:
        """Return a plain value; None for what is passed over: arrays and long texts."""
        if kind == _STRING:
            length = self._unpack(_COUNT)
            if length > _MAX_TEXT:
                self._skip(length)
                return None
            return self._bytes(length).decode("utf-8", "replace")
        if kind == _ARRAY:
            self._skip_array(depth)
            return None
        if kind not in _SCALARS:
            raise ValueError(f"its metadata have values of the type {kind}")
        return self._unpack(_SCALARS[kind])

    def _skip_array(self, depth: int) -> None:
        kind, count = self._unpack(_NUMBER), self._unpack(_COUNT)
        if kind in _SCALARS:
            self._skip(count * _SCALARS[kind].size)
            return
        self._strings += count
        if self._strings > STRINGS or depth > _MAX_DEPTH:
            raise ValueError("its metadata hold too many texts or arrays")
        self._require_room(count * _COUNT.size)
        for _ in range(count):
            if kind == _STRING:
                self._skip(self._unpack(_COUNT))
            else:
                self._value(kind, depth + 1)

    def _text(self) -> str:
        length = self._unpack(_COUNT)
        if length > 2**16:
            raise ValueError("a name is too long")
        return self._bytes(length).decode("utf-8")

    def _unpack(self, form: Struct) -> int:
        value: int = form.unpack(self._bytes(form.size))[0]
        return value

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ValueError("the file ends in its header")
        return data

    def _skip(self, count: int) -> None:
        self._require_room(count)
        self._file.seek(count, os.SEEK_CUR)

    def _require_room(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ValueError("the file ends in its header")

    def _require_version(self, version: int) -> None:
        if version in VERSIONS:
            return
        is_swapped = version & 0xFFFF == 0 and version >> 16
        raise SourceError(
            self._path,
            "it is big-endian" if is_swapped else f"it is GGUF of version {version}",
            f"little-endian files of the versions {' and '.join(map(str, VERSIONS))} are read",
            "run gguf-convert-endian FILE little, of the package gguf"
            if is_swapped
            else "convert or download the model again",
        )
