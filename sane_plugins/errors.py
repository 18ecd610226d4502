"""Errors that a user can act on: one sentence, four facts, no traceback."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from unicodedata import category

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_SHOWN = 1_000  # characters of one name or fact
_MOST_MARKS = 6  # on one letter; more are drawn over the lines above and below
# Printable to Python and yet unseen: fillers, joiners, blanks and variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class SaneError(Exception):
    """A failure told as place, what was found, what was needed, and the way out."""

    exit_code = 1
    plugin = ""  # whose hook raised it, where that is not ours
    is_unknown = False  # to all that is loaded; a plugin that is not may know it

    def __init__(self, place: object, found: str, needed: str, way_out: str) -> None:
        self.place, self.found, self.needed, self.way_out = str(place), found, needed, way_out
        place, found, needed, way_out = map(visible, (self.place, found, needed, way_out))
        super().__init__(f"{place}: {found}, but {needed}; {way_out}.")

    def __str__(self) -> str:
        text = super().__str__()
        of_plugin = f"plugin {visible(self.plugin)}: "
        return text if not self.plugin or text.startswith(of_plugin) else of_plugin + text

    def __reduce__(self) -> tuple[object, ...]:
        state = {"plugin": self.plugin, "is_unknown": self.is_unknown}
        return type(self), (self.place, self.found, self.needed, self.way_out), state

    def said_by(self, plugin: str) -> None:
        """Keep whose hook raised it, empty for one of ours; the innermost is the first to say so."""
        vars(self).setdefault("plugin", plugin)

    def as_unknown(self) -> Self:
        """Return it marked: nothing that is loaded knows what was asked for."""
        vars(self)["is_unknown"] = True
        return self

    def with_way_out(self, other: str) -> Self:
        """Return the same error with another way out behind its own."""
        error = type(self)(self.place, self.found, self.needed, f"{self.way_out}, {other}")
        vars(error).update(plugin=self.plugin, is_unknown=self.is_unknown)
        return error


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


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")


def visible(text: str, most: int = _MOST_SHOWN) -> str:
    """Return text from a file or a plugin as it may be shown: on one line, all of it seen, its middle cut.

    What Python does not call printable (controls, directions, zero width, tags, private use, lone surrogates,
    spaces but the plain one), what is printable but unseen, and marks heaped on one letter are
    escaped as in a literal. Letters of all scripts stay. `most`: characters of the text that are shown.
    """
    if len(text) > most:
        end = most // 2
        text = f"{text[:end]}…({len(text) - 2 * end:,} more)…{text[-end:]}"
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for character in text:
        marks = marks + 1 if category(character).startswith("M") else 0
        is_seen = character.isprintable() and not _UNSEEN.match(character) and marks <= _MOST_MARKS
        shown.append(character if is_seen else character.encode("unicode_escape").decode())
    return "".join(shown)
