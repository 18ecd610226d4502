"""The contract of engines: an outcome for each task, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Iterable

from sane_plugins.engines import Done, Engine, Lost, Work
from sane_plugins.testing.contract import ContractError, quiet

_TASKS, _WORKERS = range(50), 2
_TOO_LARGE, _WRONG = 7, -1


def check_engine(engine: Engine) -> None:
    """Raise `ContractError` unless an engine does all tasks, loses those without memory, and raises errors.

    It may use other processes: what it is given can be pickled.
    """
    with quiet("the engine"):
        tasks = [i for i in _TASKS if i != _TOO_LARGE]
        if _results(engine, tasks) != {i: task**2 for i, task in enumerate(tasks)}:
            raise ContractError(
                "it answers otherwise than with a Done and its result for each task"
            )
        if _results(engine, []):
            raise ContractError("it has outcomes where there is nothing to do")
        _require_loss(engine)
        try:
            _results(engine, [1, _WRONG, 2])
        except LookupError:
            return
        except BaseException as error:
            raise ContractError(
                f"an error of the work reaches its caller as {type(error).__name__}: raise it as it is"
            ) from error
    raise ContractError("an error of the work is lost: raise it where outcomes are read")


def _require_loss(engine: Engine) -> None:
    needed = (
        "a task that has too little memory is to be Lost(index, out_of_memory=True), and no other"
    )
    try:
        found = _results(engine, [1, _TOO_LARGE, 2])
    except MemoryError as error:
        raise ContractError(f"MemoryError ends the run: {needed}") from error
    if found != {0: 1, 1: None, 2: 4}:
        raise ContractError(needed)


def _results(engine: Engine, tasks: list[int]) -> dict[int, int | None]:
    """Return results by place, None of a task that was lost for lack of memory."""
    outcomes: Iterable[object] = engine(_start, tasks, _WORKERS)
    found: dict[int, int | None] = {}
    for outcome in outcomes:
        if not isinstance(outcome, Done | Lost) or outcome.index in found:
            raise ContractError(
                f"it answers {type(outcome).__name__}, or twice for one task:"
                " one Done or Lost is needed for each"
            )
        if isinstance(outcome, Lost) and not outcome.out_of_memory:
            raise ContractError("it loses a task without saying that memory was short")
        found[outcome.index] = outcome.result if isinstance(outcome, Done) else None
    return found


def _start() -> Work:
    return _square


def _square(task: int) -> int:
    if task == _TOO_LARGE:
        raise MemoryError
    if task == _WRONG:
        raise LookupError(task)
    return task * task
