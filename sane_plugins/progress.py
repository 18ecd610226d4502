"""What long jobs report. The library yields; the command line draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a long job: `done` of `total` steps of `job`, with an optional note."""

    job: str
    done: int
    total: int
    note: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report to nobody."""


_current: ContextVar[Report] = ContextVar("report", default=silent)


def current() -> Report:
    """Return where jobs that are started now report to."""
    return _current.get()


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Let all jobs that are started within report to `report`."""
    token = _current.set(report)
    try:
        yield
    finally:
        _current.reset(token)
