"""Import a module from a folder that is not on the path, for as long as the import takes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def is_installed(module: str) -> bool:
    """Return whether a module, or the package that holds it, is found without any folder of ours."""
    top = module.partition(".")[0]
    return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)


@contextmanager
def modules_in(folder: Path | None) -> Iterator[None]:
    """Let this thread import modules that lie in a folder, after all that is installed; other threads do not.

    `sys.path` would let every thread do so.
    """
    if folder is None:
        yield
        return
    finder = _FolderFinder(folder)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _FolderFinder:
    """Finds top-level modules in a folder, for the thread that made it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._thread = str(folder), threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module lies; None for a submodule and in any other thread."""
        if path is not None or threading.get_ident() != self._thread:
            return None
        return PathFinder.find_spec(name, [self._folder], target)
