"""Limits of a checkpoint, checked before torch reads it: sizes from its pickle, nothing allocated."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.pickle_scan import PickledTensor, PickleLimitError, Scan, pickle_end

VIEWS = 2**31  # bytes that expanded, shared and sparse tensors may have beyond what the file holds
PICKLE = 256 * 2**20  # bytes of one pickle

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's form before zip files
_MAKES_ROOM = ("Storage", "Tensor", "bytearray")  # called with a number they allocate that much


def vet_zip(path: Path, archive: Archive, name: str) -> None:
    """Raise `SourceError` where the zip form's pickle asks for more than the archive holds."""
    folder = name.removesuffix("data.pkl")
    with _limits(path):
        scan = scan_member(archive, name)
        held = {s.key: archive.size(f"{folder}data/{s.key}") for s in scan.storages}
        _vet(path, scan, held)


def scan_member(archive: Archive, name: str) -> Scan:
    """Return a pickled member's content with inert records."""
    if archive.size(name) > PICKLE:
        raise PickleLimitError("too large")
    return Scan(archive.read(name))


def vet_legacy(path: Path) -> None:
    """Raise `SourceError` where a checkpoint of the form before zip files asks for more than it holds."""
    with (
        _limits(path),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if _next(path, data).content != _MAGIC:
            return  # torch says what it is
        for _ in range(2):
            _next(path, data)
        scan = _next(path, data)
        _next(path, data)
        sizes: dict[str, int] = {}
        for storage in scan.storages:
            sizes[storage.key] = max(storage.nbytes, sizes.get(storage.key, 0))
        left = len(data) - data.tell() - 8 * len(sizes)  # each begins with its number of values
        if sum(sizes.values()) > left:
            raise _too_much(path, sum(sizes.values()), left)
        _vet(path, scan, sizes)


def _next(path: Path, data: mmap.mmap) -> Scan:
    """Return the next of the pickles that lie one after the other."""
    start = data.tell()
    if pickle_end(data) - start > PICKLE:
        raise PickleLimitError("too large")
    scan = Scan(data[start : data.tell()])
    _vet(path, scan, {s.key: s.nbytes for s in scan.storages})
    return scan


def _limits(path: Path) -> Any:
    return source_errors(
        path, "it is broken, or too nested or too large a pickle", "a whole checkpoint"
    )


def _vet(path: Path, scan: Scan, held: Mapping[str, int]) -> None:
    """Raise where a storage is larger than its data, or tensors are together larger than the file."""
    for storage in scan.storages:
        if storage.nbytes > held[storage.key]:
            raise _too_much(path, storage.nbytes, held[storage.key])
    for record in scan.made:
        if record.args and record.name.endswith(_MAKES_ROOM) and _asks_for_room(record.args):
            raise SourceError(
                path,
                f"it makes objects while it is read ({record.name})",
                "only plain tensors are read",
                "save its state dict with torch.save or safetensors",
            )
    require_backed(path, [tensor for _, tensor in scan.tensors()])


def _asks_for_room(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, int) for arg in args)


def require_backed(path: Path, tensors: list[PickledTensor]) -> None:
    """Raise where tensors reach past their data, or expanded and shared ones are too large together."""
    distinct = {(t.storage.key, t.dtype, t.offset, t.shape, t.stride): t for t in tensors}.values()
    wanted = sum(t.count * t.dtype.itemsize for t in distinct)
    held = sum({t.storage.key: t.storage.nbytes for t in distinct}.values())
    if wanted > held + VIEWS:
        raise _too_much(path, wanted, held)
    if any(t.end > t.storage.room for t in distinct):
        raise _too_much(path, max(t.end for t in distinct), held)


def _too_much(path: Path, wanted: int, held: int) -> SourceError:
    return SourceError(
        path,
        f"its tensors ask for {wanted} bytes where it holds {held}",
        "a whole checkpoint is needed",
        "copy or download it again",
    )
