"""Progress of long jobs: the library calls the given function; a host passes it on to its plugins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a long job: `done` of `total` steps of `job`, with an optional note.

    A total of 0 steps announces something: `job` is then a sentence, without its full stop.
    """

    job: str
    done: int
    total: int
    note: str = ""

    @property
    def is_announcement(self) -> bool:
        """Return whether it announces something, and counts no steps."""
        return self.total == 0


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report to nobody."""
