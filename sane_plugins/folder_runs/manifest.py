"""The networks of a run: where they lie, what they hold, and in which shard the row of each goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from math import prod
from pathlib import Path

import torch

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.folder_runs.content import NetworkContent, error_text, read_content
from sane_plugins.progress import Progress, Report
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import Entry, Zoo, walk_each_folder

_AT_ONCE = 4096  # files whose content is asked for ahead
_DIGITS = 12  # of a digest in a shard's name


@dataclass(frozen=True, slots=True)
class ListedNetwork:
    """A network below a folder: its path from there, and what it holds; `zoo` is the path of its zoo, if any.

    In a zoo the rest of the path is the key of its entry.
    """

    path: str
    content: NetworkContent
    zoo: str | None = None

    @property
    def key(self) -> str:
        """Return the key of its entry in the zoo."""
        return self.path.removeprefix(f"{self.zoo}/")


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a folder, which together hold each file once; `number` counts from 1."""

    number: int = 1
    count: int = 1

    def holds(self, path: str) -> bool:
        """Return whether a path is in this part."""
        if self.count == 1:
            return True
        digest = sha256(path.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


@dataclass(frozen=True, eq=False)
class Manifest:
    """The networks of a run, sorted by path, and how many other files lie beside them."""

    networks: tuple[ListedNetwork, ...]
    others: int

    @property
    def size(self) -> int:
        """Return the bytes of all networks."""
        return sum(x.content.size for x in self.networks)


@dataclass(frozen=True, eq=False)
class Shard:
    """Networks whose rows are in one file, whose name tells which they are."""

    name: str
    networks: Sequence[ListedNetwork]


def read_manifest(
    folder: Path,
    open_file: Callable[[str], WeightGraph],
    report: Report,
    *,
    without: Path | None = None,
    part: Part | None = None,
    threads: int = 1,
) -> Manifest:
    """Find the networks below a folder and read what each holds. Raises `SourceError` where there is none.

    Of zoos, the entries. A network or a folder that cannot be read has an error.
    """
    part = part or Part()
    unreadable: list[OSError] = []
    files: list[Path] = []
    networks: list[ListedNetwork] = []
    for found in walk_each_folder(folder, without, unreadable.append):
        files += [x for x in found.files if part.holds(_relative(x, folder))]
        for zoo in found.zoos:
            networks += [x for x in _entries(zoo, folder) if part.holds(x.path)]
    for error in unreadable:
        name = _relative(Path(str(error.filename)), folder)
        if part.holds(name):
            told = f"this folder cannot be read ({error.strerror}), but the right to is needed"
            networks.append(ListedNetwork(name, NetworkContent(0, error=told)))
    others = 0
    with ThreadPoolExecutor(threads) as pool:
        contents = _in_blocks(pool, partial(read_content, open_file=open_file), files)
        for i, (path, content) in enumerate(zip(files, contents, strict=True)):
            report(Progress(job="read contents", done=i, total=len(files), note=path.name))
            others += content is None
            if content is not None:
                networks.append(ListedNetwork(_relative(path, folder), content))
    report(Progress(job="read contents", done=len(files), total=len(files)))
    if not networks and part.count == 1:
        raise SourceError(
            folder,
            f"none of its {len(files)} files is a network",
            "a folder of networks is needed",
            "name the folder that holds the files",
        )
    return Manifest(tuple(sorted(networks, key=lambda x: x.path)), others)


def plan_shards(manifest: Manifest, rows: int, size: int) -> list[Shard]:
    """Return the manifest as runs of at most so many rows, and bytes unless it is one row.

    They follow from the manifest alone, whatever computes them.
    """
    shards: list[Shard] = []
    own: list[ListedNetwork] = []
    held = 0
    for network in manifest.networks:
        if own and (len(own) == rows or held + network.content.size > size):
            shards.append(_shard(len(shards), own))
            own, held = [], 0
        own.append(network)
        held += network.content.size
    return [*shards, _shard(len(shards), own)] if own else shards


def _shard(number: int, networks: list[ListedNetwork]) -> Shard:
    lines = "".join(json.dumps([x.path, x.content.size, x.content.digest]) + "\n" for x in networks)
    digest = sha256(lines.encode()).hexdigest()[:_DIGITS]
    return Shard(f"part-{number:05d}-{digest}.parquet", tuple(networks))


def _in_blocks(
    pool: ThreadPoolExecutor, read: Callable[[Path], NetworkContent | None], files: Iterable[Path]
) -> Iterator[NetworkContent | None]:
    """Read in threads, some thousand files ahead."""
    left = iter(files)
    while block := [*islice(left, _AT_ONCE)]:
        yield from pool.map(read, block)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _entries(folder: Path, root: Path) -> Iterator[ListedNetwork]:
    """Yield the networks of a zoo; one with an error where it cannot be read."""
    name = _relative(folder, root)
    try:
        zoo = Zoo.open(folder)
    except SaneError as error:
        yield ListedNetwork(name, NetworkContent(0, error=error_text(error, folder)))
        return
    for entry in zoo.entries:
        prefix = "" if name == "." else f"{name}/"
        yield ListedNetwork(f"{prefix}{entry.key}", _entry_content(zoo, entry), name)


def _entry_content(zoo: Zoo, entry: Entry) -> NetworkContent:
    """Return what an entry holds: by its digest, which old zoos lack, or by its file."""
    path = zoo.folder / entry.file
    modified = path.stat().st_mtime_ns if path.is_file() else 0
    held = entry.digest or f"{entry.key} {modified}"
    told = json.dumps([held, entry.form, dict(entry.factory)], sort_keys=True)
    form = zoo.forms.get(entry.form)
    size = sum(
        prod(shape) * getattr(torch, kind).itemsize
        for _, kind, shape in (form.tensors if form else ())
    )
    return NetworkContent(size, sha256(told.encode()).hexdigest(), modified)
