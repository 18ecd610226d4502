"""Process several sources in one command: an unreadable one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sane_plugins.cli.console import note
from sane_plugins.errors import SaneError, SourceError

T = TypeVar("T")


def process_each(
    sources: Sequence[str], process: Callable[[str], T]
) -> tuple[dict[str, T], list[str]]:
    """Return the results by source, and the sources that failed, whose errors go to stderr.

    Raises the error itself if there is only one source.
    """
    results: dict[str, T] = {}
    failed = []
    for source in sources:
        try:
            results[source] = process(source)
        except SaneError as error:
            if len(sources) == 1:
                raise
            note(f"Error: {error}")
            failed.append(source)
    return results, failed


def require_none_failed(failed: Sequence[str]) -> None:
    """Raise `SourceError`, and so exit with 1, if a source failed; for the end of a command."""
    if failed:
        raise SourceError(
            "sources",
            f"{len(failed)} could not be read",
            "all were asked for",
            "see the errors above",
        )
