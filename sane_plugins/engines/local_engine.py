"""The engine of one machine: worker processes, each fed by a thread of its own.

Neither `multiprocessing.Pool` nor `concurrent.futures` fits: the one waits for ever for a worker that was
killed, the other gives up on all of them and does not tell which task it was at.
"""

from __future__ import annotations

import pickle
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import Any

from sane_plugins.engines.memory_limit import share_of_memory
from sane_plugins.engines.outcomes import Done, Lost, Outcome, Start
from sane_plugins.engines.serve import DONE, FAILED, OUT_OF_MEMORY
from sane_plugins.engines.worker_process import WorkerProcess
from sane_plugins.errors import PluginError

_STARTS = 3  # of a worker that ends before it has begun
_AHEAD = 4  # outcomes per worker that wait to be taken
_SECONDS = 0.2  # between looks at whether the run has ended


class LocalEngine:
    """Spreads tasks over processes of this machine; each may take its share of the memory."""

    def __call__(self, start: Start, tasks: Sequence[Any], workers: int) -> Iterator[Outcome]:
        """Do all tasks with so many processes at most."""
        if not tasks:
            return
        crew = _Crew(pickle.dumps(start), tasks, min(workers, len(tasks)))
        try:
            yield from crew.outcomes()
        finally:
            crew.dismiss()


class _Crew:
    """Threads, each with a worker process, that take tasks from one queue."""

    def __init__(self, start: bytes, tasks: Sequence[Any], workers: int) -> None:
        self._start, self._memory = start, share_of_memory(workers)
        self._waiting = deque(enumerate(tasks))
        self._count = len(tasks)
        self._answers: queue.Queue[Outcome | BaseException] = queue.Queue(_AHEAD * workers)
        self._is_over = Event()
        self._workers: dict[int, WorkerProcess] = {}
        self._threads = [Thread(target=self._feed, args=(i,), daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def outcomes(self) -> Iterator[Outcome]:
        for _ in range(self._count):
            outcome = self._next()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def dismiss(self) -> None:
        """End all workers and their threads."""
        self._is_over.set()
        for thread in self._threads:
            while thread.is_alive():  # it may just have started another worker
                for worker in [*self._workers.values()]:
                    worker.kill()
                thread.join(_SECONDS)

    def _next(self) -> Outcome | BaseException:
        while (
            True
        ):  # with a limit of time, because Ctrl-C is not heard in an endless wait everywhere
            try:
                return self._answers.get(timeout=_SECONDS)
            except queue.Empty:
                continue

    def _tell(self, outcome: Outcome | BaseException) -> None:
        while not self._is_over.is_set():
            try:
                self._answers.put(outcome, timeout=_SECONDS)
                return
            except queue.Full:
                continue

    def _feed(self, number: int) -> None:
        try:
            while not self._is_over.is_set() and self._waiting:
                try:
                    index, task = self._waiting.popleft()
                except IndexError:  # another thread took the last
                    break
                if number not in self._workers:
                    self._begin(number)
                self._tell(self._outcome(number, index, task))
        except BaseException as error:
            self._tell(error)
        finally:
            self._end(number)

    def _outcome(self, number: int, index: int, task: Any) -> Outcome | BaseException:
        kind, content = self._workers[number].ask(task)
        if kind == DONE:
            return Done(index, content)
        self._end(number)  # also where memory ran out: what it holds is not known
        if kind == FAILED:
            failure: Exception = content
            return failure
        return Lost(index, out_of_memory=kind == OUT_OF_MEMORY)

    def _begin(self, number: int) -> None:
        """Start a worker; again, where it is killed before it has begun."""
        for _ in range(_STARTS):
            self._workers[number] = WorkerProcess(self._start, self._memory)
            kind, content = self._workers[number].begin()
            if kind == FAILED:
                raise content
            if kind or self._is_over.is_set():
                return
            self._end(number)
        raise PluginError(
            "engine local",
            f"a worker process ended {_STARTS} times before it had begun",
            "it must be able to start",
            "look for its message above, or take fewer workers",
        )

    def _end(self, number: int) -> None:
        if (worker := self._workers.pop(number, None)) is not None:
            worker.close()
