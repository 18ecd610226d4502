"""Checks before a file is read, and errors of its reading as one sentence."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from sane_plugins.errors import SaneError, SourceError


def require_file(path: Path) -> Path:
    """Return the path of a file that exists and holds something; raise `SourceError` otherwise."""
    try:
        problem = _problem(path)
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be searched
        raise _unreadable(path, error) from error
    if problem:
        raise SourceError(path, problem, "a file with weights is needed", "check the path")
    return path


@contextmanager
def source_errors(
    path: Path | str, found: str = "it is broken", needed: str = "a whole file"
) -> Iterator[None]:
    """Turn any exception into `SourceError`, drop warnings: of damaged bytes libraries raise anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except SaneError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from error
        except Exception as error:
            raise SourceError(
                path, found, f"{needed} is needed", "copy or download it again"
            ) from error


def open_until_collected(owner: object, path: Path) -> BufferedReader:
    """Return the opened file, which is closed with its owner; it may be replaced meanwhile."""
    file = path.open("rb")
    weakref.finalize(owner, file.close)
    return file


def _problem(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    if not path.exists():
        return "it does not exist"
    if not path.is_file():
        return "it is no regular file"
    return "" if path.stat().st_size else "it is empty"


def _unreadable(path: Path | str, error: OSError | ValueError) -> SourceError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return SourceError(
        path,
        f"it cannot be read ({reason})",
        "the right to read is needed",
        "check the file and its folder",
    )
