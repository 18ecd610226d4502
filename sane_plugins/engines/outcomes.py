"""What an engine is: it spreads pieces of work over workers, and tells what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Done:
    """A task that was done: its place in the sequence of tasks, and its result."""

    index: int
    result: Any


@dataclass(frozen=True)
class Lost:
    """A task whose worker ended before it answered; `out_of_memory` where that was the reason."""

    index: int
    out_of_memory: bool = False


Outcome = Done | Lost
Work = Callable[[Any], Any]
Start = Callable[[], Work]


class Engine(Protocol):
    """Spreads tasks over workers, which are processes, here or on other machines.

    Every worker calls `start` once, and what it returns with one task after another: `start`, tasks and
    results are pickled. Tasks are begun in their order, whenever a worker is free; outcomes come as they are
    ready, one for each task. A worker that ends, or whose work raises `MemoryError`, makes its task `Lost`,
    is replaced, and stops no other; any other exception is raised and ends the run. Closing the iterator ends
    the workers.
    """

    def __call__(self, start: Start, tasks: Sequence[Any], workers: int) -> Iterator[Outcome]:
        """Do all tasks with so many workers at most."""
