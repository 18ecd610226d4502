"""What lies below a folder: zoos, and files that may each be a network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sane_plugins.formats import INDEX, is_cache_internal, shard_names
from sane_plugins.zoo.index import NAME

_SHARD_PATTERN = re.compile(r"-\d{5}-of-\d{5}\.[a-z]+$")


@dataclass(frozen=True)
class FolderContents:
    """The zoos below a folder, and the files outside of them, both sorted; no part of a sharded network."""

    zoos: tuple[Path, ...]
    files: tuple[Path, ...]


def walk_folder(folder: Path, without: Path | None = None) -> FolderContents:
    """Find what lies below a folder; nothing hidden, nothing in the folder `without`."""
    parts = [*walk_each_folder(folder, without)]
    zoos = sorted(path for part in parts for path in part.zoos)
    files = sorted(path for part in parts for path in part.files)
    return FolderContents(tuple(zoos), tuple(files))


def walk_each_folder(
    folder: Path,
    without: Path | None = None,
    unreadable: Callable[[OSError], object] | None = None,
) -> Iterator[FolderContents]:
    """Yield what lies in a folder itself, then in each below it, so that no more than one is in memory.

    `unreadable` is told of folders that cannot be read.
    """
    left_out = None if without is None else without.resolve()
    for name, inner, names in os.walk(folder, onerror=unreadable):
        here = Path(name)
        is_left_out = left_out is not None and here.resolve().is_relative_to(left_out)
        inner[:] = [] if is_left_out else sorted(x for x in inner if not x.startswith("."))
        if not is_left_out:
            paths = (here / x for x in sorted(names) if not x.startswith("."))
            yield _contents([x for x in paths if x.is_file() and not _leads_into(x, left_out)])


def _leads_into(path: Path, left_out: Path | None) -> bool:
    return left_out is not None and path.is_symlink() and path.resolve().is_relative_to(left_out)


def _contents(files: list[Path]) -> FolderContents:
    """Return what the files of one folder are."""
    zoos = {path.parent for path in files if path.name == NAME}
    shards = {path.with_name(name) for path in files for name in shard_names(path)}
    indexed = {path.parent for path in files if path.name.endswith(INDEX)}
    networks = (
        path
        for path in files
        if path.parent not in zoos
        and path not in shards
        and not is_cache_internal(path)
        and not (path.parent in indexed and _SHARD_PATTERN.search(path.name))
    )
    return FolderContents(tuple(sorted(zoos)), tuple(networks))
