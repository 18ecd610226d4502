"""A worker process, as the run that started it sees it.

It is a plain `python -c`, so that, unlike what `multiprocessing` spawns, it never imports the program's main
module: a program needs no `if __name__ == "__main__"`, and may call from any of its threads.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from multiprocessing.spawn import get_executable
from typing import Any

from sane_plugins.engines.messages import receive, send

# Isolated: it searches the path of the program, and never the working directory.
_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    " from sane_plugins.engines.serve import serve; serve()"
)
# Results must not depend on how many threads share a sum, nor workers stand in each other's way.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_SECONDS_TO_END = 2.0
ENDED = ("", None)


class WorkerProcess:
    """A process that answers questions, one at a time."""

    def __init__(self, start: bytes, memory: int | None) -> None:
        path = json.dumps([entry for entry in sys.path if entry])
        executable = get_executable() or sys.executable
        self._process = subprocess.Popen(
            [os.fsdecode(executable), "-I", "-c", _PROGRAM, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
        )
        self._introduction = (pickle.dumps(memory), start)

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def begin(self) -> tuple[str, Any]:
        """Let it begin; return its first answer, of the kind "" where it has ended."""
        return self._ask(*self._introduction)

    def ask(self, task: Any) -> tuple[str, Any]:
        """Return the kind of its answer, "" where it has ended, and what that holds."""
        return self._ask(pickle.dumps(task))

    def _ask(self, *messages: bytes) -> tuple[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            for message in messages:
                send(self._process.stdin, message)  # type: ignore[arg-type]
            answer = receive(self._process.stdout)  # type: ignore[arg-type]
        except (OSError, ValueError):  # it is gone, or we are ending it
            return ENDED
        return ENDED if answer is None else pickle.loads(answer)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """Let it end, and wait until it has."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                stream.close()  # type: ignore[union-attr]
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
