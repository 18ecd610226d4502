"""What worker processes do in tests of engines; they import it by its name."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from sane_plugins.engines import Done
from sane_plugins.errors import UsageError


@dataclass(frozen=True)
class Start:
    """Begins with an error, or with what does tasks."""

    fails: bool = False

    def __call__(self):
        if self.fails:
            raise UsageError("a start", "it is wrong", "a right one is needed", "correct it")
        return work


def work(task):
    """Do what a task says."""
    kind, value = task
    if kind == "square":
        print("libraries print")
        os.write(1, b"and write")
        return value * value
    if kind == "pid":
        return os.getpid()
    if kind == "sleep":
        Path(value).touch()
        time.sleep(600)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "die once" and not Path(value).exists():
        Path(value).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "no memory":
        raise MemoryError
    if kind == "allocate":
        return len(bytearray(value))
    if kind == "fail":
        raise KeyError(value)
    return kind


def inline(start, tasks, _workers):
    """An engine that works in this process."""
    do = start()
    for i, task in enumerate(tasks):
        yield Done(i, do(task))


def workers_of(pid: int) -> list[int]:
    """Return the worker processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"sane_plugins.engines.serve" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found
