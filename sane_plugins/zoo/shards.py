"""Sharded tensor storage of a zoo; the index, written last, names the file of each entry."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from sane_plugins.atomic_files import locked, naming, write_whole
from sane_plugins.errors import ZooError
from sane_plugins.weights import memory_key, tensor_digest
from sane_plugins.zoo.index import NAME, OLD_NAME, OLD_WEIGHTS, Entry, Form, ZooIndex, write_index

_SHARD_NAME = re.compile(r"weights-[0-9a-f]{16}\.safetensors")
LIMIT = 64 * 2**20  # bytes of tensors per file, and in memory while it is written
_MOST_KEPT = 2 * LIMIT  # bytes of a file that stays mapped


class ShardWriter:
    """Appends entries to a zoo folder, which holds a complete zoo, or none, at all times.

    A kill loses only what was added since the last `commit`. Committing raises `ZooError` if another
    process has changed the index since it was read.
    """

    def __init__(self, folder: Path, index: ZooIndex, limit: int = LIMIT) -> None:
        self.folder, self._max_bytes = folder, limit
        self.name, self.forms = index.name, dict(index.forms)
        self.entries = list(index.entries)
        self._pending: list[Entry] = []
        self._content_hash = sha256()
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._known_stamp = _index_stamp(folder)
        self._is_version1 = (folder / OLD_NAME).is_file()

    def add(
        self,
        entry: Entry,
        state: Mapping[str, torch.Tensor],
        ties: Mapping[str, str] | None = None,
        axes: Mapping[str, int] | None = None,
        values: str | None = None,
    ) -> Entry:
        """Add an entry and copies of its tensors; names that share memory are tied.

        `values` is the digest of its weights, if already known.
        """
        ties = _find_ties(state) if ties is None else ties
        owned = {key: value for key, value in state.items() if key not in ties}
        form = Form.of(owned, ties, axes or {})
        entry = replace(entry, form=form.name, digest=values or digest(owned), file="")
        tensors = {
            f"{entry.key}/{key}": _storable_copy(entry, value) for key, value in owned.items()
        }
        # Names may contain slashes, so tensor names of two entries can collide: use separate files then.
        if self._bytes >= self._max_bytes or tensors.keys() & self._tensors.keys():
            self._flush()
        self.forms[form.name] = form
        self._pending.append(entry)
        self._tensors |= tensors
        self._content_hash.update(
            f"{entry.key} {form.name} {entry.digest}".encode(errors="surrogatepass")
        )
        self._content_hash.update(
            "".join(tensor_digest(x) for x in owned.values() if not x.is_floating_point()).encode()
        )
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        return entry

    def replace_entry(self, entry: Entry) -> None:
        """Replace the entry with the same key; its tensors are kept."""
        for entries in (self.entries, self._pending):
            for i, old in enumerate(entries):
                if old.key == entry.key:
                    entries[i] = replace(entry, file=old.file)

    def commit(self) -> None:
        """Write pending entries, then the index; delete files it no longer references."""
        self._flush()
        with locked(self.folder):
            if _index_stamp(self.folder) != self._known_stamp:
                raise ZooError(
                    self.folder,
                    "another process changed the zoo meanwhile",
                    "one at a time may",
                    "run the command again",
                )
            write_index(self.folder, ZooIndex(self.name, tuple(self.entries), self.forms))
            self._known_stamp = _index_stamp(self.folder)
            self._delete_unused()

    def _flush(self) -> None:
        """Write pending tensors to a file named by content hash; an indexed file never changes."""
        if not self._pending:
            return
        name = f"weights-{self._content_hash.hexdigest()[:16]}.safetensors"
        tensors = self._tensors
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            self.folder / name, lambda partial: save_file(tensors, partial), follow_links=False
        )
        self.entries += [replace(entry, file=name) for entry in self._pending]
        self._pending, self._tensors, self._bytes = [], {}, 0
        self._content_hash = sha256()

    def _delete_unused(self) -> None:
        used = {entry.file for entry in self.entries}
        ours = [path for path in self.folder.iterdir() if _SHARD_NAME.fullmatch(path.name)]
        for path in [*ours, *([self.folder / OLD_WEIGHTS] if self._is_version1 else [])]:
            if path.name not in used:
                with suppress(OSError):  # a reader on Windows may have it open
                    path.unlink(missing_ok=True)


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of weights: 32 hex digits of the values alone, then 32 of names and values.

    Only floating-point tensors count: a different step counter does not make a different network.
    """
    floats = {key: value for key, value in tensors.items() if value.is_floating_point()}
    hashes = {key: tensor_digest(value) for key, value in floats.items()}
    values = sha256(" ".join(sorted(hashes.values())).encode())
    named = sha256(
        "\n".join(f"{key} {hashes[key]}" for key in sorted(hashes)).encode(errors="surrogatepass")
    )
    return values.hexdigest()[:32] + named.hexdigest()[:32]


def open_tensors(path: Path) -> Callable[[str], torch.Tensor]:
    """Open a tensor file; return the reader of a tensor by name. Raises `ZooError`.

    What it reads is the caller's: writing into it changes nobody else's. Files of usual size stay mapped into
    memory until they change, for an entry is a small part of one, and tensors are copied out of them. A
    larger one is mapped anew, for what it holds may not fit into memory.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            raise FileNotFoundError("there is no such file")
        about = path.stat()
        if about.st_size > _MOST_KEPT:
            read: Callable[[str], torch.Tensor] = safe_open(path, framework="pt").get_tensor
            return read
        kept = _open_cached(path, about.st_mtime_ns)
        return lambda name: kept.get_tensor(name).clone()
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


def _index_stamp(folder: Path) -> tuple[int, ...]:
    """Return modification times and sizes of a folder's index, to detect changes."""
    stats = [path.stat() for name in (NAME, OLD_NAME) if (path := folder / name).is_file()]
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size))


def _find_ties(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Map names to the earlier name they share memory with."""
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for key, value in state.items():
        if value.numel() and (owner := first.setdefault(memory_key(value), key)) != key:
            ties[key] = owner
    return ties


def _storable_copy(entry: Entry, tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous CPU copy; raise `ZooError` for a dtype safetensors cannot store."""
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
