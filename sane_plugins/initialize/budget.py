"""A budget of seconds, and the user's Ctrl-C: both end the work at hand, and what was found stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic


class BudgetSpentError(Exception):
    """The stage's time is over; raised by `Budget.check`, and told by no one."""


class Budget:
    """Seconds since it was made, of a budget (None: no bound)."""

    def __init__(self, budget: float | None) -> None:
        self._start, self._budget = monotonic(), budget
        self._end = float("inf")
        self.interrupted = self.cut = False

    @property
    def left(self) -> float:
        """Return the seconds that are left, 0 after an interruption."""
        if self.interrupted:
            return 0.0
        spent = monotonic() - self._start
        return float("inf") if self._budget is None else max(0.0, self._budget - spent)

    def restarted(self) -> Budget:
        """Return a clock of the same budget that starts now, and tells this one of what it cut."""
        self._start, self._end = monotonic(), float("inf")
        return self

    def check(self) -> None:
        """Raise `BudgetSpentError` where the stage has to end."""
        if self.interrupted or self.over():
            raise BudgetSpentError

    def over(self) -> bool:
        """Tell whether the stage's time is over, and remember that something was left out."""
        if is_over := monotonic() > self._end:
            self.cut = True
        return is_over

    @contextmanager
    def until_over(self) -> Iterator[None]:
        """Bound what is useful and not needed by the whole budget; `BudgetSpentError` and Ctrl-C end it."""
        self._end = self._start + (float("inf") if self._budget is None else self._budget)
        try:
            yield
        except KeyboardInterrupt as stop:
            self.interrupted = True
            raise BudgetSpentError from stop

    @contextmanager
    def stage(self, share: float) -> Iterator[None]:
        """Bound a stage by the time at which a share of the budget is spent; Ctrl-C ends it too."""
        self._end = self._start + share * (float("inf") if self._budget is None else self._budget)
        try:
            yield
        except BudgetSpentError:
            self.cut = True
        except KeyboardInterrupt:
            self.cut = self.interrupted = True
