"""The engine of a Ray cluster: actors that work one task after another.

Ray Data's own maps are not used for this: where a file ends their worker, they give up on its whole block, or
on all, and do not tell which file it was.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from sane_plugins.engines import Done, Lost, Outcome, Start, is_out_of_memory
from sane_plugins.errors import PluginError, SaneError, first_line

_STARTS = 3  # of an actor that ends before it has begun
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class RayEngine:
    """Spreads tasks over actors of a cluster, each of one core.

    The cluster is that of the program, else that which RAY_ADDRESS names, else one that is started here and
    ended with the run. Its machines have this package and its plugins, and see files under the same paths.
    """

    def __call__(self, start: Start, tasks: Sequence[Any], workers: int) -> Iterator[Outcome]:
        """Do all tasks with so many actors at most."""
        if not tasks:
            return
        ray = import_ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            _start(ray, workers)
        troupe = _Troupe(ray, start)
        try:
            yield from troupe.outcomes(tasks, min(workers, len(tasks)))
        finally:
            troupe.dismiss()
            if is_ours:
                ray.shutdown()


class Performer:
    """What an actor is: it begins once, then does tasks."""

    def __init__(self) -> None:
        self._work: Any = None

    def begin(self, start: Start) -> SaneError | None:
        """Begin; return the error where that fails."""
        try:
            self._work = start()
        except SaneError as error:
            return error
        return None

    def do(self, task: Any) -> tuple[bool, Any]:
        """Return whether a task was done, and its result or what was raised; None where memory ran out."""
        try:
            return True, self._work(task)
        except Exception as error:
            if is_out_of_memory(error):
                return False, None
            return False, error if isinstance(error, SaneError) else _failure(error)


class _Troupe:
    """The actors of a run, and the task that each is at."""

    def __init__(self, ray: Any, start: Start) -> None:
        self._ray, self._start = ray, ray.put(start)
        # No restarts: an actor that is gone has to be told from one that works.
        self._kind = ray.remote(num_cpus=1, max_restarts=0, runtime_env={"env_vars": _ONE_THREAD})(
            Performer
        )
        self._at: dict[
            Any, tuple[Any, int]
        ] = {}  # by the reference to the answer; -1 while it begins

    def outcomes(self, tasks: Sequence[Any], workers: int) -> Iterator[Outcome]:
        left = deque(enumerate(tasks))
        failed_starts = 0
        for _ in range(workers):
            self._engage()
        while self._at:
            (answer,), _ = self._ray.wait([*self._at], num_returns=1)
            actor, index = self._at.pop(answer)
            outcome, is_alive = self._outcome(answer, index)
            if outcome is not None:
                yield outcome
            failed_starts = failed_starts + 1 if index < 0 and not is_alive else 0
            if failed_starts >= _STARTS * workers:
                raise PluginError(
                    "engine ray",
                    f"its actors ended {failed_starts} times before they had begun",
                    "they must be able to start",
                    "look at Ray's logs, or use the engine local",
                )
            if is_alive and left:
                following, task = left.popleft()
                self._at[actor.do.remote(task)] = actor, following
            elif is_alive:
                self._ray.kill(actor)
            elif left:
                self._engage()

    def dismiss(self) -> None:
        for actor, _ in self._at.values():
            self._ray.kill(actor)

    def _engage(self) -> None:
        actor = self._kind.remote()
        self._at[actor.begin.remote(self._start)] = actor, -1

    def _outcome(self, answer: Any, index: int) -> tuple[Outcome | None, bool]:
        """Return what became of a task, None for a beginning, and whether the actor is alive."""
        errors = self._ray.exceptions
        try:
            got = self._ray.get(answer)
        except (errors.ActorDiedError, errors.ActorUnavailableError, errors.OutOfMemoryError):
            return (Lost(index) if index >= 0 else None), False
        if index < 0:
            if got is not None:
                raise got
            return None, True
        is_done, content = got
        if not is_done and content is not None:
            raise content
        return (Done(index, content) if is_done else Lost(index, out_of_memory=True)), True


def import_ray() -> Any:
    """Import the library. Raises `PluginError` where it is not there."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them to its makers
    try:
        return import_module("ray")
    except ImportError as error:
        raise PluginError(
            "engine ray",
            f"ray cannot be imported ({first_line(error)})",
            "this engine needs it",
            "run pip install 'sane-plugins[ray]'",
        ) from error


def _start(ray: Any, workers: int) -> None:
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PluginError(
            "engine ray",
            f"no cluster could be reached or started ({first_line(error)})",
            "one is needed",
            "check RAY_ADDRESS",
        ) from error


def _failure(error: Exception) -> PluginError:
    return PluginError(
        "an actor",
        f"it failed with {type(error).__name__} ({first_line(error)})",
        "its work must not fail",
        "run the task with the engine local",
    )
