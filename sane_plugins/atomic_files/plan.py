"""Which files a run may write: all of them are checked at once, before any work."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from sane_plugins.errors import SaneError, SourceError, UsageError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _mode: True, "a device"),
)
_Identity = tuple[int, int] | str


def require_outputs(
    outputs: Iterable[str | Path], *, force: bool = False, sources: Iterable[str | Path] = ()
) -> None:
    """Raise `UsageError` unless a run may write all of these files, and `SourceError` without the right to.

    Each is a new file, or with `force` a regular one, in a folder that is there. Whatever its name, and with
    `force` too, none is a file that the run reads, or an old one in a folder that it reads, and none is
    written twice. `sources` that are no paths are left out.
    """
    read = {_identity(path): path for path in _paths(sources)}
    folders = {os.path.realpath(path): path for path in read.values() if path.is_dir()}
    written: dict[_Identity, Path] = {}
    for output in outputs:
        path = Path(output)
        status = _status(path)
        if _ends_as_folder(output):
            raise _not_a_file(path, "it is named as a folder")
        identity = _identity(path)
        if (source := read.get(identity) or _folder_of(path, folders)) is not None:
            what = "it is read by the same run" if source not in folders.values() else ""
            raise UsageError(
                path,
                what or f"it lies in {source}, which is read by the same run",
                "a source is never overwritten",
                "name another file",
            )
        require_replaceable(path)
        if status is not None and not force:
            raise UsageError(
                path,
                "it exists",
                "nothing is overwritten unasked",
                "name another file or add --force",
            )
        if identity in written:
            raise UsageError(
                path,
                f"it is written twice, also as {written[identity]}"
                if written[identity] != path
                else "it is written twice",
                "each output needs a file of its own",
                "name another file",
            )
        written[identity] = path
        _require_folder(path)


def require_output_folder(folder: Path, sources: Iterable[str | Path] = ()) -> None:
    """Raise `UsageError` where a folder cannot be made, or is a folder that the run reads."""
    folder = Path(folder)
    status = _status(folder)
    if status is not None and not folder.is_dir():
        raise UsageError(
            folder, "it is no folder", "a folder is needed", "name another, or remove it"
        )
    above = next((parent for parent in folder.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise UsageError(
            folder, f"{above} is no folder", "a folder is needed", "name another folder"
        )
    if any(_identity(folder) == _identity(path) for path in _paths(sources)):
        raise UsageError(
            folder,
            "it is read by the same run",
            "a source is never overwritten",
            "name another folder",
        )


def require_replaceable(path: Path) -> None:
    """Raise `UsageError` where a path holds anything but a file, which would be replaced."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise _no_name(path, error) from error
    if not stat.S_ISREG(mode):
        raise _not_a_file(path, f"it is {next(noun for test, noun in _KINDS if test(mode))}")


def unwritable(path: Path, reason: str) -> SourceError:
    """Return the error for a file that cannot be written."""
    return SourceError(
        path,
        f"it cannot be written ({reason})",
        "room and the right to write are needed",
        "choose another place",
    )


def _require_folder(path: Path) -> None:
    folder = Path(os.path.realpath(path) if path.is_symlink() else path).parent
    if not folder.is_dir():
        found = f"it leads to {folder}, which" if path.is_symlink() else "its folder"
        raise UsageError(
            path, f"{found} does not exist", "a folder to write to is needed", "make it first"
        )
    if not os.access(folder, os.W_OK):
        raise unwritable(path, "Permission denied")


def _status(path: Path) -> os.stat_result | None:
    """Return the status of what lies there, a broken link included."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _no_name(path, error) from error


def _identity(path: Path) -> _Identity:
    """Return what tells whether two names are one file: links, hard links and case do not count."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _paths(sources: Iterable[str | Path]) -> Iterator[Path]:
    """Yield the sources that are files or folders."""
    for source in sources:
        try:
            Path(source).stat()
        except (OSError, ValueError):
            continue
        yield Path(source)


def _folder_of(path: Path, folders: dict[str, Path]) -> Path | None:
    """Return the folder that is read and that holds an existing file."""
    if not path.exists():
        return None
    real = Path(os.path.realpath(path))
    return next((folders[str(x)] for x in real.parents if str(x) in folders), None)


def _ends_as_folder(output: str | Path) -> bool:
    return isinstance(output, str) and output.endswith(tuple(filter(None, (os.sep, os.altsep))))


def _not_a_file(path: Path, found: str) -> UsageError:
    return UsageError(path, found, "a file's name is needed", "name another file")


def _no_name(path: Path, error: OSError | ValueError) -> SaneError:
    if isinstance(error, PermissionError):
        return unwritable(path, error.strerror or "Permission denied")
    reason = getattr(error, "strerror", None) or "no file can have this name"
    return UsageError(path, reason, "a usable name is needed", "name another file")
