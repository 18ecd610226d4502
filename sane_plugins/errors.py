"""Errors that a user can act on: one sentence, four facts, no traceback."""

from __future__ import annotations


class SaneError(Exception):
    """A failure told as place, what was found, what was needed, and the way out."""

    exit_code = 1

    def __init__(self, place: object, found: str, needed: str, way_out: str) -> None:
        self.place, self.found, self.needed, self.way_out = str(place), found, needed, way_out
        text = f"{place}: {found}, but {needed}; {way_out}."
        # Names come from files: unprintable characters, which may break or hide the line, are escaped.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.place, self.found, self.needed, self.way_out)


class UsageError(SaneError):
    """The command or call was wrong, whatever the files hold."""

    exit_code = 2


class SourceError(SaneError):
    """A network cannot be read, understood or written."""


class TaskError(SaneError):
    """The target task's images or labels cannot be used."""


class ZooError(SaneError):
    """A zoo, or what was learned from one, cannot be used."""


class PluginError(SaneError):
    """A plugin is missing, broken, or collides with another."""


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
