"""Write files whole or not at all: into a private folder beside them first, then renamed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from sane_plugins.atomic_files.plan import require_replaceable, unwritable
from sane_plugins.atomic_files.private_folder import PREFIX, locked, private_folder

Write = Callable[[Path], object]
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_PARTIAL = ".partial"
_NAME_BYTES = 255  # of a file's name
_PROBE_BYTES = 2**20  # more than a failed write leaves free


def write_whole(path: Path, write: Write, *, follow_links: bool = True) -> Path:
    """Write to an unfinished file and rename it; leave nothing half-written behind.

    A link that the user named stays, and what it leads to is replaced. Without `follow_links` it is replaced
    itself: for names that the user did not choose.
    """
    write_all({path: write}, follow_links=follow_links)
    return path


def write_all(writes: Mapping[Path, Write], *, follow_links: bool = True) -> None:
    """Write several files, and rename them in their order when all are complete.

    Each rests on those before it: the values before the model that names them, the model before what tells
    of it. So that no new file is ever seen with an old one of the same names, the old ones but the first are
    taken away before, the last first. Raises `SourceError` that names the file which cannot be written.
    """
    with ExitStack() as folders:
        private: dict[Path, Path] = {}
        unfinished: list[_Unfinished] = []
        for path, write in writes.items():
            require_replaceable(path)
            target = Path(os.path.realpath(path if follow_links else path.parent))
            target = target if follow_links else target / path.name
            with naming(path):
                if target.parent not in private:
                    private[target.parent] = folders.enter_context(private_folder(target.parent))
                partial = private[target.parent] / _partial_name(target.name)
                mode = _create(partial)
                _write(write, partial)
                # safetensors makes files that only their owner can read.
                partial.chmod(_permissions(target, mode))
            unfinished.append(_Unfinished(path, target, partial))
        _rename(unfinished)


@dataclass(frozen=True)
class _Unfinished:
    """A complete file that is to be renamed: its name as given, its place, and where it lies."""

    path: Path
    target: Path
    partial: Path

    @property
    def old(self) -> Path:
        """Return where the file that it replaces waits meanwhile."""
        return self.partial.with_name(self.partial.name.removesuffix(_PARTIAL) + ".old")


def _rename(unfinished: list[_Unfinished]) -> None:
    first, *others = unfinished
    if not others:  # one rename is whole by itself
        with naming(first.path):
            first.partial.replace(first.target)
        return
    with ExitStack() as locks:
        for folder in sorted({file.target.parent for file in unfinished}):
            locks.enter_context(locked(folder))
        are_new = [file for file in unfinished if not os.path.lexists(file.target)]
        try:
            for file in reversed(others):
                with naming(file.path), suppress(FileNotFoundError):
                    file.target.rename(file.old)
            with suppress(OSError):  # a file system without hard links
                first.old.hardlink_to(first.target)
            for file in unfinished:
                with naming(file.path):
                    file.partial.replace(file.target)
        except BaseException:
            _undo(unfinished, are_new)
            raise


def _undo(unfinished: list[_Unfinished], are_new: list[_Unfinished]) -> None:
    """Put back what was replaced, and remove what was new."""
    for file in unfinished:
        if file.old.exists():
            file.old.replace(file.target)
        elif file in are_new and not file.partial.exists():
            file.target.unlink()


def append_text(path: Path, text: str) -> None:
    """Append to a file, or make one. Raises `SourceError` where it cannot be written."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn the errors of a writer in the block into a `SourceError` that names the user's file."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error.strerror or "writing failed") from error
    # torch.save: RuntimeError, disk full; a name that cannot be encoded: UnicodeError
    except (RuntimeError, SafetensorError, UnicodeError) as error:
        raise unwritable(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return why a library could not write, without the name of the unfinished file."""
    text = str(error).partition("\n")[0]
    # safetensors writes "... No space left on device (os error 28) ..."
    code = text.rpartition("(os error ")[2].partition(")")[0]
    if code.isdigit():
        return os.strerror(int(code))
    return "writing failed" if PREFIX in text or "enforce fail" in text else text


def _write(write: Write, partial: Path) -> None:
    try:
        write(partial)
    except RuntimeError:  # torch.save does not say why
        with partial.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
        raise


def _create(partial: Path) -> int:
    """Make an empty file and return its permissions, which the umask has decided."""
    file = os.open(partial, _CREATE, 0o666)
    try:
        return os.fstat(file).st_mode & 0o777
    finally:
        os.close(file)


def _permissions(target: Path, new: int) -> int:
    """Return the permissions of the file that is replaced, or `new`: another writer may take it away now."""
    with suppress(FileNotFoundError):
        status = target.lstat()
        if stat.S_ISREG(status.st_mode):
            return status.st_mode & 0o777
    return new


def _partial_name(name: str) -> str:
    # torch.save writes the name without its last suffix into the file.
    return name + _PARTIAL if len(os.fsencode(name + _PARTIAL)) <= _NAME_BYTES else name
