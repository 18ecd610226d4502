"""What lies below a folder: zoos, and files that may each be a network."""

from __future__ import annotations

import re
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
    left_out = None if without is None else without.resolve()
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not _is_hidden(path, folder)
        and not (left_out and path.resolve().is_relative_to(left_out))
    )
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


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
