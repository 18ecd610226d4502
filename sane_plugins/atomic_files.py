"""Write files whole or not at all: to a partial file in the same folder first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from sane_plugins.errors import SourceError, UsageError


def require_free(path: Path, force: bool) -> Path:
    """Return a path that may be written; raise `UsageError` if it exists or its folder does not."""
    if path.exists() and not force:
        raise UsageError(
            path, "it exists", "nothing is overwritten unasked", "name another file or add --force"
        )
    if not path.parent.is_dir():
        raise UsageError(
            path, "its folder does not exist", "a folder to write to is needed", "make it first"
        )
    return path


def require_writable(path: Path) -> Path:
    """Return a path whose folder is writable; raise `SourceError` for any other."""
    if not os.access(path.parent, os.W_OK):
        raise _unwritable(path, "Permission denied")
    return path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write to a partial file and rename it; leave nothing half-written behind."""
    write_all({path: write})
    return path


def write_all(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write several partial files, and rename them when all are complete."""
    partials = {path.with_name(path.name + ".partial"): path for path in writes}
    path = next(iter(writes))
    try:
        for partial, path in partials.items():
            partial.touch()
            mode = partial.stat().st_mode
            writes[path](partial)
            partial.chmod(mode)  # safetensors makes files that only their owner can read
        for partial, path in partials.items():
            partial.replace(path)
    # torch.save: RuntimeError, disk full; a name that cannot be encoded: UnicodeError
    except (OSError, RuntimeError, SafetensorError, UnicodeError) as error:
        raise _unwritable(path, str(error).partition("\n")[0]) from error
    finally:
        for partial in partials:
            with suppress(OSError):
                partial.unlink()


def _unwritable(path: Path, reason: str) -> SourceError:
    return SourceError(
        path,
        f"it cannot be written ({reason})",
        "room and the right to write are needed",
        "choose another place",
    )
