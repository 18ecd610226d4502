"""What may not happen on the road: files outside, other programs, the network, time, memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "shutil.",
    "urllib.",
    "http.",
    "ftplib.",
    "pty.",
    "ctypes.dlopen",
    "webbrowser.",
    "os.kill",
    "winreg.",
    "syslog.",
    "builtins.input",
)
_ON_PATHS = (
    "open",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "os.listdir",
    "os.scandir",
)
_KERNEL = ("/proc/", "/sys/", "/dev/urandom", "/dev/null")
SECONDS, MEMORY, GROWTH = 10.0, 3 * 2**30, 2**30


class HangError(BaseException):
    """The case took too long; no handler of `Exception` may swallow it."""


class Guard:
    """Watch one process: `escapes` lists what was done outside of the folder during `watching`."""

    def __init__(self, folder: Path) -> None:
        self._allowed = (str(folder.resolve()), *{os.path.realpath(p) for p in sys.path if p})
        self._code = (sys.prefix, sys.base_prefix)
        self._folder, self._is_on = str(folder.resolve()), False
        self.escapes: list[str] = []
        sys.addaudithook(self._see)

    @contextmanager
    def watching(self, seconds: float = SECONDS) -> Iterator[None]:
        """Record escapes, and raise `HangError` in here after so many seconds of computing."""
        self.escapes.clear()
        old = signal.signal(signal.SIGPROF, _late)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, old)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event.startswith(_FORBIDDEN):
            self.escapes.append(f"{event} {str(args)[:100]}")
        elif event in _ON_PATHS:
            self._is_on = False  # what is asked here may raise events of its own
            names = args[:1] if event == "open" else args[:2]  # the second may be a mode
            paths = [a for a in names if isinstance(a, str | bytes | os.PathLike)]
            self.escapes += [
                f"{event} {p!r}" for p in paths if not self._may(event, os.fsdecode(p))
            ]
            self._is_on = True

    def _may(self, event: str, path: str) -> bool:
        try:
            real = os.path.realpath(path)
        except ValueError:  # a null in the name: the system opens nothing
            return True
        if real.startswith(self._folder):
            return True
        is_code = real.endswith((".py", ".pyc", ".so")) or event in ("os.listdir", "os.scandir")
        is_ours = real.startswith((*self._allowed, *self._code))
        return real.startswith(_KERNEL) or (is_code and is_ours)


def _late(_: int, __: FrameType | None) -> None:
    raise HangError


def limit_memory(more: int = MEMORY) -> None:
    """Let this process reserve only so much more than it has."""
    import resource  # only Unix has it, and the cases without a guard run anywhere

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Peak:
    """How much more memory than at its beginning this process used at most."""

    def __init__(self) -> None:
        # Without the right to reset it, the peak since the start is all that is known.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._start = self._now("VmRSS")

    @property
    def growth(self) -> int:
        """Return the bytes since then."""
        return self._now("VmHWM") - self._start

    @staticmethod
    def _now(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field))
