"""Files of pickles in a row: torch's form before zip archives, and what `pickle.dump` writes of tensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from sane_plugins.formats.torch_files.checkpoint_limits import size_error
from sane_plugins.formats.torch_files.inert_pickle import Global
from sane_plugins.formats.torch_files.pickle_scan import Scan, Storage
from sane_plugins.formats.torch_files.pickled_arrays import bytes_source, in_memory, to_bytes

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's form
_STORAGE_FUNCTION = "torch.storage._load_from_bytes"


@dataclass(frozen=True)
class PickleRow:
    """The pickle that holds the content, and where the values of storages lie in the file, by their keys."""

    scan: Scan
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class PlainScan(Scan):
    """A pickle as `pickle.dump` writes it: each storage is a file of torch's form in the pickle itself."""

    def __init__(self, path: Path, stream: IO[bytes], most: int) -> None:
        self._path = path
        self.stored: dict[str, torch.UntypedStorage] = {}
        self._loaded: dict[int, Storage] = {}
        super().__init__(stream, most)

    def _make(self, maker: Any, args: Any) -> Any:
        if isinstance(maker, Global) and maker.name == _STORAGE_FUNCTION:
            return self._load(*args)
        return super()._make(maker, args)

    def _load(self, data: Any) -> Storage:
        """Return a storage; of the same bytes, the same one."""
        source = bytes_source(data)
        if id(source) not in self._loaded:
            self._loaded[id(source)] = self._read(to_bytes(source), f"bytes {id(source)}")
        return self._loaded[id(source)]

    def _read(self, data: bytes, key: str) -> Storage:
        stream = io.BytesIO(data)
        # A plain scan: what lies in a pickle in a pickle is not followed any deeper.
        row = scan_row(self._path, Scan(stream, self.left), stream, len(data))
        self._spend(self.left - row.scan.left)
        storage = row.scan.content
        if not isinstance(storage, Storage):
            raise ValueError("no storage")
        start, size = row.places[storage.key]
        self.stored[key] = in_memory(data[start : start + size])
        storage = storage._replace(key=key)
        self.storages[storage] = None
        return storage


def scan_row(path: Path, first: Scan, stream: IO[bytes], nbytes: int) -> PickleRow:
    """Scan the rest of torch's older form, if the first pickle is the beginning of one.

    `nbytes` is the size of the file that the stream begins. Raises `SourceError` where storages are larger.
    """
    if first.content != _MAGIC:
        return PickleRow(first)
    version = Scan(stream, first.left)
    system = Scan(stream, version.left)
    scan = Scan(stream, system.left)
    keys = Scan(stream, scan.left)
    return PickleRow(scan, _places(path, scan, keys.content, stream.tell(), nbytes))


def _places(
    path: Path, scan: Scan, keys: Any, start: int, nbytes: int
) -> dict[str, tuple[int, int]]:
    """Return where each storage's values lie; eight bytes before them hold their number."""
    sizes: dict[str, int] = {}
    for storage in scan.storages:
        sizes[storage.key] = max(storage.nbytes, sizes.get(storage.key, 0))
    available = nbytes - start - 8 * len(sizes)
    if sum(sizes.values()) > available:
        raise size_error(path, sum(sizes.values()), available)
    places = {}
    for key in keys:
        places[key] = (start + 8, sizes[key])
        start += 8 + sizes[key]
    return places
