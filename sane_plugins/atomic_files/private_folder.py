"""A private folder for unfinished files, beside the files that they become.

It is made exclusively, under a random name, and only its owner may enter it: nobody can lay a link where a
file will be written, and no file of the user has its name. While its writer lives, a file in it is locked,
which tells it from the folders of killed writers; the next writer beside these removes them. An empty folder
may be of either: it is removed too, and a living writer makes another.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sane_plugins.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: nothing tells the living from the dead, so nothing is removed
    fcntl = None  # type: ignore[assignment]

PREFIX = ".sane-plugins-"
_NAME = re.compile(re.escape(PREFIX) + "[a-z0-9_]{8}")
_LOCK = "lock"
_LOCK_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_PATIENCE = 5.0  # seconds; anybody who can read a folder can lock it, and must not stop us for good


@contextmanager
def private_folder(beside: Path) -> Iterator[Path]:
    """Make a folder in the folder `beside`, and remove it at the end; those of killed writers go first."""
    _remove_left_behind(beside)
    folder, lock = _make(beside)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes' `locked` blocks of the folder waiting, for some seconds at most."""
    if fcntl is None:
        yield
        return
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder may be written to and not be read
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE
        while _lock(file) is False and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        os.close(file)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder for this process within the block. Raises `UsageError` where another one has it."""
    if fcntl is None:
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        if _lock(file) is False:
            raise UsageError(
                folder,
                "another process is writing to it",
                "one writes at a time",
                "wait until that has ended, or name another folder",
            )
        yield
    finally:
        os.close(file)


def _make(beside: Path) -> tuple[Path, int]:
    """Return a new folder and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside))
        # Before it is locked, another writer may take the folder for a killed one's and remove it.
        try:
            lock = os.open(folder / _LOCK, _LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue
        if _lock(lock) is not False and os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def _lock(file: int) -> bool | None:
    """Lock an open file; return False where another holds it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_left_behind(beside: Path) -> None:
    with suppress(OSError), os.scandir(beside) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of ours whose writer is dead."""
    status = folder.lstat()
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return
    try:
        lock = os.open(folder / _LOCK, _LOCK_FLAGS)
    except FileNotFoundError:
        folder.rmdir()  # its writer makes another; fails where anything is in it, so it was not ours
        return
    try:
        found = os.fstat(lock)
        if stat.S_ISREG(found.st_mode) and not found.st_size and _lock(lock):
            _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder; the lock last, so that a kill leaves it recognisable."""
    try:
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        (folder / _LOCK).unlink()
        folder.rmdir()
    except OSError:  # a library has made a folder in it
        shutil.rmtree(folder, ignore_errors=True)
