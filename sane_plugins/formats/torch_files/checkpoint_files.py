"""The two forms of torch's checkpoints, zip archives and the older row of pickles; neither is run."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from sane_plugins.formats.archives import Archive
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.torch_files.checkpoint_limits import (
    MAX_PICKLE_BYTES,
    require_backed,
    require_held,
    scan_member,
)
from sane_plugins.formats.torch_files.content import ContentBuilder
from sane_plugins.formats.torch_files.inert_pickle import step_limit
from sane_plugins.formats.torch_files.pickle_rows import PlainScan, scan_row
from sane_plugins.formats.torch_files.pickle_scan import Scan, Storage
from sane_plugins.formats.torch_files.pickled_arrays import in_memory

_PLAIN_MODULES = {
    *("torch", "torch.cuda", "torch._utils", "torch._tensor", "torch.storage", "builtins"),
    *("collections", "_codecs", "torch.nn.parameter", "torch.serialization", "copyreg"),
    *("numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy._core.multiarray"),
    *("numpy.core.numeric", "numpy._core.numeric"),
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, as plain mappings, lists and tensors.

    `classes` names the classes and functions, of others than torch's tensors, that it was made with.
    """

    content: Any
    classes: tuple[str, ...]


def read_archive(path: Path, archive: Archive, name: str) -> Checkpoint:
    """Read the pickle `name` of an archive. Raises `SourceError` where it asks for more than there is."""
    folder = name.removesuffix("data.pkl")
    with _checkpoint_errors(path):
        scan = scan_member(archive, name)
        held = {s.key: archive.size(f"{folder}data/{s.key}") for s in scan.storages}
        _require_held(path, scan, held, archive.nbytes)
        read = _archive_reader(archive, folder)
        return _checkpoint(path, scan, read, archive.nbytes)


def read_pickles(path: Path, file: IO[bytes], nbytes: int) -> Checkpoint:
    """Read torch's older form, a row of pickles and the values of storages, or one plain pickle."""
    with _checkpoint_errors(path):
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        row = scan_row(path, PlainScan(path, head, step_limit(nbytes)), head, nbytes)
        scan = row.scan
        stored = dict(scan.stored) if isinstance(scan, PlainScan) else {}
        held = {s.key: s.nbytes for s in scan.storages}
        _require_held(path, scan, held | {key: x.nbytes() for key, x in stored.items()}, nbytes)

        def read(storage: Storage) -> torch.UntypedStorage:
            if storage.key not in stored:
                start, size = row.places[storage.key]
                file.seek(start)
                stored[storage.key] = in_memory(file.read(size))
            return stored[storage.key]

        return _checkpoint(path, scan, read, nbytes)


def _checkpoint(
    path: Path, scan: Scan, read: Callable[[Storage], torch.UntypedStorage], nbytes: int
) -> Checkpoint:
    content = ContentBuilder(path, read, nbytes).plain(scan.content)
    classes = [name for name in scan.names if name.rpartition(".")[0] not in _PLAIN_MODULES]
    return Checkpoint(content, tuple(classes))


def _checkpoint_errors(path: Path) -> Any:
    return source_errors(
        path, "it is broken, or too nested or too large a pickle for its size", "a whole checkpoint"
    )


def _require_held(path: Path, scan: Scan, held: Mapping[str, int], nbytes: int) -> None:
    """Raise where a storage is larger than its data, or all tensors together are larger than the file."""
    for storage in scan.storages:
        require_held(path, storage, held[storage.key])
    require_backed(path, [tensor for _, tensor in scan.tensors()], nbytes)


def _archive_reader(archive: Archive, folder: str) -> Callable[[Storage], torch.UntypedStorage]:
    """Return what reads a storage; an uncompressed one is mapped, and its values are read when used."""
    order = f"{folder}byteorder"
    is_big = order in archive.members and archive.read_head(order, 3) == b"big"
    mapped = _mapped(archive)
    stored: dict[str, torch.UntypedStorage] = {}

    def read(storage: Storage) -> torch.UntypedStorage:
        if storage.key not in stored:
            name = f"{folder}data/{storage.key}"
            start, size = archive.start(name), archive.size(name)
            values = mapped[start : start + size] if mapped else in_memory(archive.read(name))
            if is_big:
                values.byteswap(storage.dtype)
            stored[storage.key] = values
        return stored[storage.key]

    return read


def _mapped(archive: Archive) -> torch.UntypedStorage | None:
    """Map a file of uncompressed members; torch maps files by names in UTF-8 only."""
    if not archive.is_plain_file or re.search("[\ud800-\udfff]", str(archive.path)):
        return None
    mapped = torch.UntypedStorage.from_file(str(archive.path), False, archive.nbytes)
    assert isinstance(mapped, torch.UntypedStorage)
    return mapped
