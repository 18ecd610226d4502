"""Check a checkpoint's pickle against the file's size before torch loads it; nothing is allocated."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import expanded_bytes, require_shape, require_tensor_count
from sane_plugins.formats.torch_files.pickle_scan import (
    PickledTensor,
    PickleLimitError,
    Scan,
    pickle_end,
    step_limit,
)

MAX_PICKLE_BYTES = 64 * 2**20
SAVE_HINT = "save its state dict with safetensors.torch.save_file"

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's legacy format, before zip files
# Called with a number, they allocate that many values.
_ALLOCATING_TYPES = ("Storage", "Tensor", "bytearray")


def vet_zip(path: Path, archive: Archive, name: str) -> None:
    """Raise `SourceError` where the pickle of a zip checkpoint asks for more data than the archive holds."""
    folder = name.removesuffix("data.pkl")
    with _pickle_errors(path):
        scan = scan_member(archive, name)
        held = {s.key: archive.size(f"{folder}data/{s.key}") for s in scan.storages}
        _vet(path, scan, held, archive.nbytes)


def scan_member(archive: Archive, name: str) -> Scan:
    """Scan a pickled member; its objects become inert records."""
    if archive.size(name) > MAX_PICKLE_BYTES:
        raise PickleLimitError("too large")
    return Scan(archive.read(name), step_limit(archive.nbytes))


def vet_legacy(path: Path) -> None:
    """Raise `SourceError` where a legacy (pre-zip) checkpoint asks for more data than it holds."""
    with (
        _pickle_errors(path),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if _scan_next(path, data).content != _MAGIC:
            return  # torch reports what it is
        for _ in range(2):
            _scan_next(path, data)
        scan = _scan_next(path, data)
        _scan_next(path, data)
        sizes: dict[str, int] = {}
        for storage in scan.storages:
            sizes[storage.key] = max(storage.nbytes, sizes.get(storage.key, 0))
        # Each storage begins with its number of values.
        available = len(data) - data.tell() - 8 * len(sizes)
        if sum(sizes.values()) > available:
            raise _size_error(path, sum(sizes.values()), available)
        _vet(path, scan, sizes, len(data))


def _scan_next(path: Path, data: mmap.mmap) -> Scan:
    """Scan the next of several concatenated pickles."""
    start = data.tell()
    most = step_limit(len(data))
    if pickle_end(data, most) - start > MAX_PICKLE_BYTES:
        raise PickleLimitError("too large")
    scan = Scan(data[start : data.tell()], most)
    _vet(path, scan, {s.key: s.nbytes for s in scan.storages}, len(data))
    return scan


def _pickle_errors(path: Path) -> Any:
    return source_errors(
        path, "it is broken, or too nested or too large a pickle for its size", "a whole checkpoint"
    )


def _vet(path: Path, scan: Scan, held: Mapping[str, int], nbytes: int) -> None:
    """Raise where a storage is larger than its data, or all tensors together are larger than the file."""
    for name in scan.modules:
        raise pickled_objects_error(path, name)
    for storage in scan.storages:
        if storage.nbytes > held[storage.key]:
            raise _size_error(path, storage.nbytes, held[storage.key])
    for record in scan.made:
        if record.args and record.name.endswith(_ALLOCATING_TYPES) and _has_integer(record.args):
            raise SourceError(
                path,
                f"it makes objects while it is read ({record.name})",
                "only plain tensors are read",
                "save its state dict with torch.save or safetensors",
            )
    require_backed(path, [tensor for _, tensor in scan.tensors()], nbytes)


def _has_integer(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, int) for arg in args)


def require_backed(path: Path, tensors: list[PickledTensor], nbytes: int) -> None:
    """Raise where tensors reach past their data, or are too many or, expanded or shared, too large in total.

    `nbytes` is the size of the file.
    """
    require_tensor_count(path, len(tensors), nbytes)
    for tensor in tensors:
        require_shape(path, "a tensor", tensor.shape)
    distinct = {(t.storage.key, t.dtype, t.offset, t.shape, t.stride): t for t in tensors}.values()
    requested = sum(t.count * t.dtype.itemsize for t in distinct)
    held = sum({t.storage.key: t.storage.nbytes for t in distinct}.values())
    if requested > expanded_bytes(min(held, nbytes)):
        raise _size_error(path, requested, held)
    if any(t.end > t.storage.room for t in distinct):
        raise _size_error(path, max(t.end for t in distinct), held)


def pickled_objects_error(path: Path, name: str) -> SourceError:
    """Return the error for a checkpoint that holds an object of a class or function of that name."""
    return SourceError(
        path,
        f"it holds pickled objects ({name[:80]}), which can run code",
        "only plain tensors are read",
        f"where you trust the file, read it with torch.load(path, weights_only=False) and {SAVE_HINT}",
    )


def _size_error(path: Path, requested: int, held: int) -> SourceError:
    return SourceError(
        path,
        f"its tensors ask for {requested} bytes where it holds {held}",
        "a whole checkpoint is needed",
        "copy or download it again",
    )
