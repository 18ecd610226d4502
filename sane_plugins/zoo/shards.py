"""A zoo's tensors in files of moderate size; the index, written last, names the file of each entry."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from sane_plugins.atomic_files import write_whole
from sane_plugins.errors import ZooError
from sane_plugins.weights import memory_key, tensor_digest
from sane_plugins.zoo.index import NAME, OLD_NAME, OLD_WEIGHTS, Entry, Form, ZooIndex, write_index

LIMIT = 64 * 2**20  # bytes of tensors in a file, and in memory while it is made


class ShardWriter:
    """Adds entries to a zoo folder. At any moment the folder holds a whole zoo, or none.

    What was added since the last `commit` is lost with a kill; nothing else is. Raises `ZooError` on a
    commit where another process changed the index meanwhile.
    """

    def __init__(self, folder: Path, index: ZooIndex, limit: int = LIMIT) -> None:
        self.folder, self._limit = folder, limit
        self.name, self.forms = index.name, dict(index.forms)
        self.entries = list(index.entries)
        self._pending: list[Entry] = []
        self._content = sha256()
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._seen = _stamp(folder)

    def add(
        self,
        entry: Entry,
        state: Mapping[str, torch.Tensor],
        ties: Mapping[str, str] | None = None,
        axes: Mapping[str, int] | None = None,
        values: str | None = None,
    ) -> Entry:
        """Add an entry and its tensors, which are copied; names that share memory are tied.

        `values` is the digest of its weights where it is known.
        """
        ties = _shared(state) if ties is None else ties
        owned = {key: value for key, value in state.items() if key not in ties}
        form = Form.of(owned, ties, axes or {})
        entry = replace(entry, form=form.name, digest=values or digest(owned), file="")
        tensors = {f"{entry.key}/{key}": _owned_copy(entry, value) for key, value in owned.items()}
        # Names may hold slashes, so that two entries may want one name: then in two files.
        if self._bytes >= self._limit or tensors.keys() & self._tensors.keys():
            self._flush()
        self.forms[form.name] = form
        self._pending.append(entry)
        self._tensors |= tensors
        self._content.update(f"{entry.key} {form.name} {entry.digest}".encode())
        self._content.update(
            "".join(tensor_digest(x) for x in owned.values() if not x.is_floating_point()).encode()
        )
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        return entry

    def replace_entry(self, entry: Entry) -> None:
        """Replace the entry of the same key; its tensors stay."""
        for entries in (self.entries, self._pending):
            for i, old in enumerate(entries):
                if old.key == entry.key:
                    entries[i] = replace(entry, file=old.file)

    def commit(self) -> None:
        """Write what was added, then the index; delete files that it no longer names."""
        self._flush()
        if _stamp(self.folder) != self._seen:
            raise ZooError(
                self.folder,
                "another process changed the zoo meanwhile",
                "one at a time may",
                "run the command again",
            )
        write_index(self.folder, ZooIndex(self.name, tuple(self.entries), self.forms))
        self._seen = _stamp(self.folder)
        self._delete_unused()

    def _flush(self) -> None:
        """Write one file, named by its content: a file that an index names never changes."""
        if not self._pending:
            return
        name = f"weights-{self._content.hexdigest()[:16]}.safetensors"
        tensors = self._tensors
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / name, lambda partial: save_file(tensors, partial))
        self.entries += [replace(entry, file=name) for entry in self._pending]
        self._pending, self._tensors, self._bytes = [], {}, 0
        self._content = sha256()

    def _delete_unused(self) -> None:
        used = {entry.file for entry in self.entries}
        for path in [*self.folder.glob("weights-*.safetensors*"), self.folder / OLD_WEIGHTS]:
            if path.name not in used:
                with suppress(OSError):  # a reader on Windows may have it open
                    path.unlink(missing_ok=True)


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return what tells weights apart: 32 digits of all values, whatever their names, and 32 with names.

    Of floating-point tensors only: a counter makes no other network.
    """
    floats = {key: value for key, value in tensors.items() if value.is_floating_point()}
    hashes = {key: tensor_digest(value) for key, value in floats.items()}
    values = sha256(" ".join(sorted(hashes.values())).encode())
    named = sha256("\n".join(f"{key} {hashes[key]}" for key in sorted(hashes)).encode())
    return values.hexdigest()[:32] + named.hexdigest()[:32]


def open_tensors(path: Path) -> Any:
    """Open a file of tensors, once as long as it is not replaced. Raises `ZooError`.

    It is mapped (`safe_open`): a file that an index names never changes, and one entry is a small part of it.
    """
    try:
        return _open_cached(path, path.stat().st_mtime_ns)
    except (OSError, SafetensorError) as error:
        raise ZooError(
            path,
            f"the weights cannot be read ({error})",
            "a whole safetensors file is needed",
            "open the zoo again, or copy it again",
        ) from error


@lru_cache(maxsize=128)
def _open_cached(path: Path, _modified: int) -> Any:
    return safe_open(path, framework="pt")


def _stamp(folder: Path) -> tuple[int, ...]:
    """Return what changes with a folder's index."""
    stats = [path.stat() for name in (NAME, OLD_NAME) if (path := folder / name).is_file()]
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size))


def _shared(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names whose values lie in the same memory as earlier ones."""
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for key, value in state.items():
        if value.numel() and (owner := first.setdefault(memory_key(value), key)) != key:
            ties[key] = owner
    return ties


def _owned_copy(entry: Entry, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with memory of its own, of a type that the format knows."""
    if not _is_storable(tensor.dtype):
        raise ZooError(
            entry.source or entry.key,
            f"a tensor has the type {tensor.dtype}",
            "safetensors does not know it",
            "convert the network first",
        )
    return tensor.detach().to("cpu", copy=True).contiguous()


@lru_cache
def _is_storable(dtype: torch.dtype) -> bool:
    try:
        save({"": torch.empty(1, dtype=dtype)})
    except (KeyError, SafetensorError, RuntimeError):
        return False
    return True
