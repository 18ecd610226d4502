"""Read a GGUF file, or all parts of a split one, as a `WeightGraph`."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from sane_gguf.header import Header, TensorPlace, read_header
from sane_plugins.errors import SourceError
from sane_plugins.formats import (
    Content,
    folder_member,
    from_state_dict,
    open_until_collected,
    reopen_later,
    require_file,
    require_tensor_count,
    source_errors,
)
from sane_plugins.runtime import without_warnings
from sane_plugins.weights import WeightGraph

_PLAIN: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)
_MAX_PARTS = 1_000  # all of them stay open


class GgufTensors(Mapping[str, torch.Tensor]):
    """Tensors of one file, each read and made plain when it is looked up.

    Raises `SourceError` for a file that is broken, or shorter than its tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        with source_errors(path, "it is no whole GGUF file", "a complete one"):
            self._file = open_until_collected(self, path)
            self.header: Header = read_header(path, self._file)
            for place in self.header.tensors.values():
                _byte_shape(place)
        self._keys = [k for k, place in self.header.tensors.items() if _dtype(place.kind)]

    @property
    def files_read(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen_later(GgufTensors, self.path, self._file)

    def __getitem__(self, key: str) -> torch.Tensor:
        place = self.header.tensors[key]
        dtype = _dtype(place.kind)
        if dtype is None:
            raise KeyError(key)
        with source_errors(self.path, f"'{key}' is broken", "a whole tensor"):
            shape = _byte_shape(place)
            data = np.empty(prod(shape), np.uint8)
            with self._lock:
                self._file.seek(place.start)
                if self._file.readinto(data.data) != len(data):
                    raise ValueError("the file became shorter")
            if _type_name(place.kind) in _PLAIN or not data.size:
                return torch.from_numpy(data).view(dtype).reshape(place.shape)
            values = quants.dequantize(data.reshape(shape), GGMLQuantizationType(place.kind))
            return torch.from_numpy(np.ascontiguousarray(values)).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def read(path: Path) -> WeightGraph:
    """Read a file and, where it is a part of a split one, all others.

    Raises `SourceError` where it is broken, or a part is missing.
    """
    files = _parts(GgufTensors(path))
    places = {key: place for file in files for key, place in file.header.tensors.items()}
    require_tensor_count(path, len(places), sum(file.path.stat().st_size for file in files))
    if len(places) < sum(len(file.header.tensors) for file in files):
        raise _split_error(path, "two of its parts have a tensor of one name")
    dtypes = {key: _dtype(place.kind) for key, place in places.items()}
    tensors: Mapping[str, torch.Tensor] = (
        ChainMap(*reversed(files)) if len(files) > 1 else files[0]  # type: ignore[arg-type]
    )
    content = Content(
        tensors=tensors,
        described={key: (places[key].shape, dtype) for key, dtype in dtypes.items() if dtype},
        converted={
            key: f"dequantised from {_type_name(place.kind)}"
            for key, place in places.items()
            if dtypes[key] and _type_name(place.kind) not in _PLAIN
        },
        unread={
            key: (prod(place.shape), f"{_type_name(place.kind)} values cannot be read")
            for key, place in places.items()
            if dtypes[key] is None
        },
    )
    architecture = str(files[0].header.metadata.get("general.architecture", ""))
    notes = (f"declared as {architecture} (GGUF)",) if architecture.isalnum() else ()
    return from_state_dict(
        tensors, str(path), container="gguf", ties={}, content=content, notes=notes
    )


def _parts(first: GgufTensors) -> list[GgufTensors]:
    """Return all parts of a split file, in their order; of any other, itself."""
    count = first.header.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return [first]
    name = _PART.fullmatch(first.path.name)
    if name is None or int(name[2]) != count or count > _MAX_PARTS:
        raise _split_error(first.path, f"it is one of {count} parts, and is not called so")
    names = [f"{name[1]}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    paths = [require_file(folder_member(first.path.parent, part)) for part in names]
    return [first if path == first.path else GgufTensors(path) for path in paths]


def _split_error(path: Path, found: str) -> SourceError:
    return SourceError(
        path,
        found,
        "all parts are needed, as llama-gguf-split wrote them",
        "download them again, or make one file of them with llama-gguf-split --merge",
    )


def _byte_shape(place: TensorPlace) -> tuple[int, ...]:
    """Return the shape of a tensor's bytes. Raises `ValueError` where they do not fit into its place."""
    if _type_name(place.kind) == f"type {place.kind}":
        return ()
    block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(place.kind)]
    *rows, length = place.shape or (1,)
    if length % block:
        raise ValueError("a row is no whole number of blocks")
    shape = (*rows, length // block * nbytes)
    if prod(shape) > place.end - place.start:
        raise ValueError("the file is shorter than its tensors, or they overlap")
    return shape


def _dtype(kind: int) -> torch.dtype | None:
    """Return the type that values are read as; None where the library does not know how."""
    return _PLAIN.get(_type_name(kind)) or (torch.float32 if _is_known(kind) else None)


@cache
def _is_known(kind: int) -> bool:
    """Return whether the library dequantises a type."""
    try:
        known = GGMLQuantizationType(kind)
        with without_warnings():
            quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except (ValueError, NotImplementedError):
        return False
    return True


def _type_name(kind: int) -> str:
    known = kind in GGMLQuantizationType.__members__.values()
    return GGMLQuantizationType(kind).name if known else f"type {kind}"
