"""Fingerprints of a zoo's networks, kept beside them: each network is read once, whatever is asked later.

They are found by what a network holds. A run that is stopped loses the last seconds; fingerprints of networks
that are gone, or have changed, are left out and dropped when the next ones are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from sane_plugins.atomic_files import locked
from sane_plugins.errors import SaneError, SourceError, ZooError
from sane_plugins.fingerprints import (
    NetworkFingerprint,
    PackedFingerprints,
    fingerprint,
    from_arrays,
    pack_all,
    to_arrays,
)
from sane_plugins.formats import FINGERPRINTS, from_state_dict, load_artifact, save_artifact
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo.index import Entry
from sane_plugins.zoo.store import Zoo

_VERSION = 1
_PATTERN = "fingerprints-*.safetensors"
_SECONDS = 20.0  # of work that a kill may lose
_MOST_STALE = 0.5  # part of the stored fingerprints
_Stored = tuple[list[PackedFingerprints], dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class IndexedZoo:
    """Fingerprints of a zoo's networks by their entries' keys; `skipped` says why there are none of some.

    `added` networks were read now, `stale` fingerprints were of networks that the zoo does not hold any more.
    """

    fingerprints: tuple[PackedFingerprints, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    added: int = 0
    stale: int = 0
    notes: tuple[str, ...] = ()


def index_zoo(zoo: Zoo, report: Report = silent, *, seconds: float = _SECONDS) -> IndexedZoo:
    """Return the fingerprints of all entries; those that the folder has not yet are made and kept there.

    Nothing that entries name is called. Where the folder cannot be written to, they are made anew each time.
    """
    return _Indexing(zoo, report, seconds).run()


class _Indexing:
    def __init__(self, zoo: Zoo, report: Report, seconds: float) -> None:
        self._zoo, self._report, self._seconds = zoo, report, seconds
        self._notes: list[str] = []
        self._files: list[Path] = []
        self._packed: list[PackedFingerprints] = []
        self._skipped: dict[str, str] = {}

    def run(self) -> IndexedZoo:
        self._read_stored()
        known = {name for packed in self._packed for name in packed.names} | self._skipped.keys()
        identities = {entry.key: _identity(self._zoo, entry) for entry in self._zoo.entries}
        wanted = dict.fromkeys(identities.values())
        missing = [x for x in self._zoo.entries if identities[x.key] not in known]
        first = {identities[entry.key]: entry for entry in reversed(missing)}
        self._make([*reversed(first.items())])
        stale = len(known - wanted.keys())
        if len(self._files) > 1 or stale > _MOST_STALE * len(known):
            self._merge(wanted.keys())
        return IndexedZoo(
            fingerprints=tuple(self._by_entry(identities)),
            skipped={
                key: self._skipped[own] for key, own in identities.items() if own in self._skipped
            },
            added=len(first),
            stale=stale,
            notes=tuple(self._notes),
        )

    def _read_stored(self) -> None:
        seen: set[str] = set()
        for path in sorted(self._zoo.folder.glob(_PATTERN)):
            try:
                packed, skipped = load_artifact(FINGERPRINTS, path, _decode)
            except ZooError as error:
                self._notes.append(f"{path.name} is made anew: {error.found}")
                continue
            self._files.append(path)
            self._skipped |= skipped
            for one in packed:
                rows = [i for i, name in enumerate(one.names) if name not in seen]
                seen |= {*one.names}
                self._packed += [one if len(rows) == len(one) else one.take(rows)] if rows else []

    def _make(self, missing: Sequence[tuple[str, Entry]]) -> None:
        """Make fingerprints, and write those of every few seconds to a file of their own."""
        made: list[tuple[str, NetworkFingerprint]] = []
        skipped: dict[str, str] = {}
        written = monotonic()
        if missing:
            self._tell_of(len(missing))
        for i, (identity, entry) in enumerate(missing):
            try:
                made.append((identity, fingerprint(_graph(self._zoo, entry))))
            except SaneError as error:
                skipped[identity] = f"{error.found}"
            self._report(Progress(job="index", done=i + 1, total=len(missing)))
            if monotonic() - written > self._seconds or i + 1 == len(missing):
                self._keep(pack_all(made), skipped)
                made, skipped, written = [], {}, monotonic()

    def _tell_of(self, count: int) -> None:
        networks = f"{count} network{'s' * (count > 1)}"
        job = f"{self._zoo.folder}: {networks} are read once for the index"
        self._report(Progress(job=job, done=0, total=0))

    def _keep(self, packed: list[PackedFingerprints], skipped: dict[str, str]) -> None:
        self._packed += packed
        self._skipped |= skipped
        try:
            self._files.append(_write(self._zoo.folder, packed, skipped))
        except SourceError as error:
            note = f"the index is not kept: {error.place}: {error.found}"
            self._notes += [note] if note not in self._notes else []

    def _merge(self, wanted: Any) -> None:
        """Write all that is wanted to one file, and remove the others."""
        merged: dict[Any, PackedFingerprints] = {}
        for one in self._packed:
            rows = [i for i, name in enumerate(one.names) if name in wanted]
            if rows:
                part = one.take(rows)
                merged[one.form] = merged[one.form].joined(part) if one.form in merged else part
        skipped = {name: why for name, why in self._skipped.items() if name in wanted}
        self._packed = [*merged.values()]
        with locked(self._zoo.folder):
            try:
                written = _write(self._zoo.folder, self._packed, skipped)
            except SourceError:  # told already
                return
            for path in self._files:
                if path != written:
                    with suppress(OSError):
                        path.unlink()

    def _by_entry(self, identities: Mapping[str, str]) -> Iterator[PackedFingerprints]:
        """Yield the fingerprints under the keys of the entries, all that hold the same weights."""
        keys: dict[str, list[str]] = {}
        for key, identity in identities.items():
            keys.setdefault(identity, []).append(key)
        for one in self._packed:
            rows = [(i, key) for i, name in enumerate(one.names) for key in keys.pop(name, ())]
            if rows:
                yield one.take([i for i, _ in rows]).named([key for _, key in rows])


def _identity(zoo: Zoo, entry: Entry) -> str:
    """Return what tells what an entry holds: of old zoos, which have no digests, by its file."""
    if entry.digest:
        return f"{entry.digest}{entry.form}"
    path = zoo.folder / entry.file
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return f"{entry.key} {stamp}"


def _graph(zoo: Zoo, entry: Entry) -> WeightGraph:
    """Return an entry as its tensors alone where its form is known, so that nothing is called."""
    form = zoo.forms.get(entry.form)
    if form is None:
        return zoo.graph(entry)
    source = f"{zoo.name}:{entry.key}"
    return from_state_dict(zoo.state_dict(entry), source, ties=form.ties, axes=form.axes)


def _write(folder: Path, packed: Sequence[PackedFingerprints], skipped: Mapping[str, str]) -> Path:
    description, arrays = to_arrays(packed)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}
    names = [name for one in packed for name in one.names] + [*skipped]
    path = folder / f"fingerprints-{sha256(' '.join(names).encode()).hexdigest()[:16]}.safetensors"
    return save_artifact(
        FINGERPRINTS, {"version": _VERSION, "skipped": dict(skipped), **description}, tensors, path
    )


def _decode(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> _Stored:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    skipped = {str(name): str(why) for name, why in description["skipped"].items()}
    return from_arrays(description, arrays), skipped
