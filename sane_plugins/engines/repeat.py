"""Tasks that were lost with their worker are done again, at last alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from sane_plugins.engines.outcomes import Done, Engine, Lost, Outcome, Start
from sane_plugins.errors import PluginError

TRIES = 3


def run_with_retries(
    engine: Engine, start: Start, tasks: Sequence[Any], workers: int
) -> Generator[Outcome, None, None]:
    """Do all tasks; yield one outcome for each, `Lost` only where a task was lost every time.

    The last try is made by one worker alone, which has all the memory of the machine: whether a task can be
    done depends on neither its neighbours nor their number. Raises `PluginError` for an engine that leaves
    tasks out.
    """
    left = [*range(len(tasks))]
    for attempt in range(TRIES):
        if not left:
            return
        is_last = attempt == TRIES - 1
        lost: list[int] = []
        for outcome in _outcomes(
            engine, start, [tasks[i] for i in left], 1 if is_last else workers
        ):
            index = left[outcome.index]
            if isinstance(outcome, Done):
                yield Done(index, outcome.result)
            elif is_last:
                yield Lost(index, outcome.out_of_memory)
            else:
                lost.append(index)
        left = sorted(lost)


def run_in_order(
    engine: Engine, start: Start, tasks: Sequence[Any], workers: int
) -> Iterator[Any | Lost]:
    """Do all tasks; yield their results, or `Lost`, in the order of the tasks."""
    early: dict[int, Any] = {}
    following = 0
    for outcome in run_with_retries(engine, start, tasks, workers):
        early[outcome.index] = outcome.result if isinstance(outcome, Done) else outcome
        while following in early:
            yield early.pop(following)
            following += 1


def _outcomes(engine: Engine, start: Start, tasks: list[Any], workers: int) -> Iterator[Outcome]:
    """Yield the outcomes of an engine, which a plugin may have written."""
    missing = {*range(len(tasks))}
    outcomes = engine(start, tasks, workers)
    try:
        for outcome in outcomes:
            if not isinstance(outcome, Done | Lost) or outcome.index not in missing:
                raise _wrong(f"it answered {type(outcome).__name__}, or twice for one task")
            missing.remove(outcome.index)
            yield outcome
    finally:
        if close := getattr(outcomes, "close", None):
            close()
    if missing:
        raise _wrong(f"it left out {len(missing)} of {len(tasks)} tasks")


def _wrong(found: str) -> PluginError:
    return PluginError(
        "the engine",
        found,
        "one Done or Lost for each task is needed",
        "tell its author, or use the engine local",
    )
