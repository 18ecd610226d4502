"""A time budget and Ctrl-C: both end the current stage, whose results so far are kept.

The work is planned to fit into the budget on an idle machine (`plan.py`). On a busy one it may take longer,
so that its result is the same; only after `PATIENCE` times the budget is it cut short.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType

PATIENCE = 4.0


class BudgetSpentError(Exception):
    """A stage's time is over; raised by `Stage.check` and caught by the stage."""


@dataclass(frozen=True)
class Completion:
    """How work ended: `timed_out` before its end (by the budget or Ctrl-C), `interrupted` by Ctrl-C."""

    timed_out: bool = False
    interrupted: bool = False

    def __or__(self, other: Completion) -> Completion:
        """Combine two: timed out or interrupted if either was."""
        return Completion(self.timed_out or other.timed_out, self.interrupted or other.interrupted)


@dataclass(frozen=True)
class Budget:
    """Seconds that work is planned for, from `started` on, by `time.monotonic` (None: no bound)."""

    seconds: float | None
    started: float = field(default_factory=monotonic)

    def end(self, share: float = 1.0) -> float:
        """Return the time at which work is cut short, or a share of the time until then has passed."""
        seconds = float("inf") if self.seconds is None else self.seconds
        return self.started + share * PATIENCE * seconds

    def after(self, completion: Completion) -> Budget:
        """Return the budget for the next stage: none if the user interrupted this one."""
        return Budget(0.0, self.started) if completion.interrupted else self


class Stage(AbstractContextManager["Stage"]):
    """A part of the work that ends quietly when its time is over, or with Ctrl-C: a cancel scope.

    `completion` says afterwards how it ended. While `has_result` is false, Ctrl-C is not caught: there is
    nothing to go on with. This is the one place of the library that catches it.
    """

    def __init__(self, end: float, has_result: bool = True) -> None:
        self._end, self.has_result = end, has_result
        self.completion = Completion()

    @property
    def is_over(self) -> bool:
        """Return whether the stage's time is over."""
        return monotonic() > self._end

    def check(self) -> None:
        """Raise `BudgetSpentError`, which ends the stage, if its time is over."""
        if self.is_over:
            raise BudgetSpentError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        interrupted = isinstance(error, KeyboardInterrupt) and self.has_result
        if not (interrupted or isinstance(error, BudgetSpentError)):
            return False
        self.completion = Completion(timed_out=True, interrupted=interrupted)
        return True
