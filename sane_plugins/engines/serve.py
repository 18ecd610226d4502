"""The way of a worker process: begin, then answer one task after another until the run has ended."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from sane_plugins.engines.memory_limit import limit_memory
from sane_plugins.engines.messages import receive, send
from sane_plugins.errors import PluginError, SaneError, first_line

READY, DONE, FAILED, OUT_OF_MEMORY = "ready", "done", "failed", "out of memory"


def serve() -> None:
    """Answer the run that started this process: a limit of memory, a `start`, then tasks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run hears it, and ends its workers
    answers: Any = os.fdopen(os.dup(sys.__stdout__.fileno()), "wb")  # type: ignore[union-attr]
    os.dup2(2, 1)  # what libraries print must not come between answers
    sys.stdout = sys.stderr
    questions: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(sys.stdin.buffer, questions), daemon=True).start()
    limit_memory(pickle.loads(questions.get()))
    try:
        work = pickle.loads(questions.get())()
    except Exception as error:
        send(answers, (FAILED, _portable(error)))
        return
    send(answers, (READY, None))
    while True:
        send(answers, _answer(work, questions.get()))


def _answer(work: Any, question: bytes) -> bytes:
    try:
        return pickle.dumps((DONE, work(pickle.loads(question))))
    except MemoryError:
        return pickle.dumps((OUT_OF_MEMORY, None))
    except Exception as error:
        return pickle.dumps((FAILED, _portable(error)))


def _listen(stream: BinaryIO, questions: SimpleQueue[bytes]) -> None:
    """Take messages, and end this process when the run has ended, whatever it is at."""
    while (message := receive(stream)) is not None:
        questions.put(message)
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent to the run."""
    if isinstance(error, SaneError):
        return error
    return PluginError(
        "a worker",
        f"it failed with {type(error).__name__} ({first_line(error)})",
        "what it does must be importable and must not fail",
        "run again with one file to see where",
    )
