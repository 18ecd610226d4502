"""Checks before a file is read, and conversion of read errors to `SourceError`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.runtime import without_warnings

T = TypeVar("T")


def require_file(path: Path) -> Path:
    """Return the path of an existing, non-empty file; raise `SourceError` otherwise."""
    try:
        problem = _problem(path)
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be searched
        raise _read_error(path, error) from error
    if problem:
        raise SourceError(path, problem, "a file with weights is needed", "check the path")
    return path


@contextmanager
def source_errors(
    path: Path | str, found: str = "it is broken", needed: str = "a whole file"
) -> Iterator[None]:
    """Turn any exception into `SourceError`, silence warnings: libraries raise anything on damaged data."""
    try:
        with without_warnings():
            yield
    except SaneError:
        raise
    except OSError as error:
        raise _read_error(path, error) from error
    except Exception as error:
        raise SourceError(
            path, found, f"{needed} is needed", "copy or download it again"
        ) from error


def open_until_collected(owner: object, path: Path) -> BufferedReader:
    """Open a file that is closed when its owner is collected; the path may be replaced meanwhile."""
    file = path.open("rb")
    weakref.finalize(owner, file.close)
    return file


def reopen_later(
    kind: Callable[[Path], T], path: Path, file: BinaryIO
) -> tuple[Callable[..., T], tuple[Any, ...]]:
    """Return a pickle reduction that reopens a file in another process if it is still the same file."""
    return _reopen, (kind, path.absolute(), _size_and_mtime(os.fstat(file.fileno())))


def _reopen(kind: Callable[[Path], T], path: Path, stamp: tuple[int, int]) -> T:
    with source_errors(path):
        if _size_and_mtime(path.stat()) != stamp:
            raise SourceError(
                path, "it is not the file that was opened", "the same file", "open it anew"
            )
    return kind(path)


def _size_and_mtime(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def exists(source: str | Path) -> bool:
    """Return whether a path exists; what cannot be the name of a file, or be looked at, does not."""
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _problem(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    if not path.exists():
        return "it does not exist"
    if not path.is_file():
        return "it is no regular file"
    return "" if path.stat().st_size else "it is empty"


def _read_error(path: Path | str, error: OSError | ValueError) -> SourceError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return SourceError(
        path,
        f"it cannot be read ({reason})",
        "the right to read is needed",
        "check the file and its folder",
    )
