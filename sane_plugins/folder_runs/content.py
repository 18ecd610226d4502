"""What a file holds, told apart by a digest of its content and of all files that it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sane_plugins.errors import SaneError
from sane_plugins.formats import (
    content_form,
    files_read,
    may_be_network,
    require_file,
    source_errors,
)
from sane_plugins.weights import WeightGraph

_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class NetworkContent:
    """Bytes and SHA-256 of a network's files, and when the latest was changed (ns); an error where one is.

    `is_single` where it lies in one file.
    """

    size: int
    digest: str = ""
    modified: int = 0
    is_single: bool = True
    error: str = ""


def read_content(path: Path, open_file: Callable[[str], WeightGraph]) -> NetworkContent | None:
    """Return what a file holds; None where it is no network."""
    try:
        if not may_be_network(path):
            return None
        files = _files_of(path, open_file)
        modified, size = stamp(files)
        digest = sha256()
        for file in files:
            if len(files) > 1:  # where one ends and the next begins counts
                digest.update(
                    f"{file.name} {file.stat().st_size}\n".encode(errors="backslashreplace")
                )
            _add(digest, require_file(file))
        return NetworkContent(size, digest.hexdigest(), modified, len(files) == 1)
    except SaneError as error:
        return NetworkContent(_size(path), error=error_text(error, path))


def stamp(files: Sequence[Path]) -> tuple[int, int]:
    """Return when the latest of some files was changed (ns), and their bytes together."""
    statuses = []
    for file in files:
        with source_errors(file):
            statuses.append(file.stat())
    return max(x.st_mtime_ns for x in statuses), sum(x.st_size for x in statuses)


def error_text(error: SaneError, path: Path) -> str:
    """Return an error without the name of its network, so that copies of one file have one row."""
    place = error.place.removeprefix(str(path)).lstrip(":, ")
    text = f"{error.found}, but {error.needed}; {error.way_out}"
    return f"{place}: {text}" if place else text


def _files_of(path: Path, open_file: Callable[[str], WeightGraph]) -> list[Path]:
    """Return a network's file and those that it names; only forms that may name any are opened."""
    if content_form(path) is not None:
        return [path]
    try:
        return [*dict.fromkeys(files_read(open_file(str(path))))]
    except SaneError:  # the job tells why
        return [path]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = sha256()
    _add(digest, require_file(path))
    return digest.hexdigest()


def _add(digest: Any, path: Path) -> None:
    with source_errors(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
