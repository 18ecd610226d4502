"""GGUF files as networks: quantised tensors are made plain by the library gguf, one at a time.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.weights import WeightGraph

MAGIC, SUFFIX = b"GGUF", ".gguf"


@hookimpl
def sane_open(source: Any) -> WeightGraph | None:
    """Read a GGUF file, whatever its name. Raises `SourceError` where it is broken, or gguf is not there."""
    if not isinstance(source, str | Path) or not _is_ours(Path(source)):
        return None
    from sane_plugins.formats import require_file

    path = require_file(Path(source))
    _require_gguf(path)
    from sane_gguf.read import read

    return read(path)


def _require_gguf(path: Path) -> None:
    """Import the library. Raises `SourceError` where it is not there, or does not import."""
    from sane_plugins.errors import SourceError, first_line
    from sane_plugins.runtime import without_warnings

    problem = "is not installed" if find_spec("gguf") is None else ""
    try:
        with without_warnings():
            if not problem:
                import_module("gguf")
    except ImportError as error:
        problem = f"does not import ({first_line(error)})"
    if problem:
        raise SourceError(
            path,
            f"the package gguf {problem}",
            "GGUF files need it",
            "run pip install 'sane-plugins[gguf]'",
        )


def _is_ours(path: Path) -> bool:
    """Return whether a file begins as GGUF, or is called so."""
    from sane_plugins.formats import exists, source_errors

    if path.suffix.lower() == SUFFIX and not (exists(path) and path.is_dir()):
        return True
    if not (exists(path) and path.is_file()):
        return False
    with source_errors(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
