"""What is wrong with plugins: kept once for each plugin and place, and told in one line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from sane_plugins.errors import PluginError, SaneError, visible

T = TypeVar("T")

SLOW_SECONDS = 2.0  # for an import, or for a call that should take none
_SLOW_EVENT_SECONDS = 0.01  # for an observer's share in each step of a long job
_MAX_REASON = 500


@dataclass(frozen=True)
class Problem:
    """A plugin, or one of its answers, that was left out, and why.

    `place` names the hook or the offer that was left out, such as `sampler 'kde'`; the whole plugin if empty.
    """

    plugin: str
    error: str
    cause: BaseException | None = field(default=None, compare=False, repr=False)
    place: str = ""
    is_own: bool = field(default=False, compare=False)  # of this package

    @property
    def way_out(self) -> str:
        """Return what to do about it."""
        if self.is_own:
            return "if they are right, it is a fault of sane-plugins: report it with its traceback"
        return f"repair the plugin, or run '{disable_line(self.plugin)}'"


@dataclass(frozen=True)
class PluginNote:
    """What the author of a plugin should know; nothing was left out."""

    plugin: str
    text: str
    is_slow: bool = False


class AnswerError(TypeError):
    """An answer of a plugin is not what its hook needs; the message begins with `it`."""


class Record:
    """The problems and notes of one host: one for each plugin and place, however often it fails.

    SANE_PLUGINS_STRICT=1 raises `PluginError` instead of keeping a problem. `is_own` says whether a plugin
    of that name is of this package.
    """

    def __init__(self, is_own: Callable[[str], bool] = lambda _: False) -> None:
        self._is_own = is_own
        self.problems: list[Problem] = []
        self.notes: list[PluginNote] = []
        self._known: set[tuple[str, str]] = set()
        self._seconds: dict[str, tuple[float, int]] = {}
        self._lock = Lock()  # long jobs report from several threads

    def leave_out(self, plugin: str, error: BaseException, place: str = "") -> Problem:
        """Keep that a plugin's answer, or offer, was left out; return the problem, new or not."""
        reason = describe_error(error, plugin)
        if isinstance(error, ModuleNotFoundError):
            reason = one_line(f"{reason}: install the package that has that module")
        problem = Problem(
            one_line(plugin), reason, error, one_line(place), is_own=self._is_own(plugin)
        )
        if os.environ.get("SANE_PLUGINS_STRICT", "") not in ("", "0"):
            raise PluginError(
                f"plugin {plugin}",
                f"it failed ({problem.error})",
                "SANE_PLUGINS_STRICT allows no failure",
                problem.way_out,
            ) from error
        if self._is_new(plugin, f"problem {place}"):
            self.problems.append(problem)
        return problem

    def note(self, plugin: str, text: str, topic: str, is_slow: bool = False) -> None:
        """Keep a note, the first on its topic."""
        if self._is_new(plugin, f"note {topic}"):
            self.notes.append(PluginNote(one_line(plugin), one_line(text), is_slow))

    def note_if_slow(self, plugin: str, what: str, seconds: float, way_out: str = "") -> None:
        """Note that a call which should take no time took longer than `SLOW_SECONDS`."""
        way_out = way_out or "decline, and offer, before importing anything heavy"
        if seconds > SLOW_SECONDS:
            self.note(plugin, f"{what} took {seconds:.1f} s: {way_out}", what, is_slow=True)

    def note_if_slows_jobs(self, plugin: str, what: str, seconds: float) -> None:
        """Add up the time of calls made for each step of long jobs, and note if they delay the jobs."""
        with self._lock:
            total, count = self._seconds.get(plugin, (0.0, 0))
            total, count = total + seconds, count + 1
            self._seconds[plugin] = total, count
        if total > SLOW_SECONDS and total / count > _SLOW_EVENT_SECONDS:
            text = f"{what} took {total:.1f} s in {count} calls: return at once"
            self.note(plugin, text, what, is_slow=True)

    def _is_new(self, plugin: str, place: str) -> bool:
        with self._lock:
            is_new = (plugin, place) not in self._known
            self._known.add((plugin, place))
        return is_new


def failure_of(call: Callable[[], T], *passed: type[BaseException]) -> tuple[T | None, Any]:
    """Return a plugin's result and None, or None and what it raised, `sys.exit` included.

    Ctrl-C is the user's, and is raised, as are the types that are `passed`.
    """
    raised: tuple[type[BaseException], ...] = (KeyboardInterrupt, *passed)
    try:
        return call(), None
    except raised:
        raise
    except BaseException as error:
        return None, error


def describe_error(error: BaseException, plugin: str = "") -> str:
    """Return an error as one line: its type, unless it is ours, and its whole message.

    Where it is said to be a `plugin`'s already, its name is not repeated.
    """
    text, failure = failure_of(lambda: str(error))
    if failure is not None:
        text = f"its message cannot be shown ({type(failure).__name__})"
    if not isinstance(error, SaneError | AnswerError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = (text or "").removeprefix(f"plugin {plugin}: ")
    return one_line(text) or type(error).__name__


def one_line(text: str) -> str:
    """Return a text as one printable line of limited length."""
    lines = (line.strip() for line in text[: 2 * _MAX_REASON].splitlines())
    line = visible("; ".join(filter(None, lines)), 2 * _MAX_REASON)
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."


def to_plugin_error(problem: Problem) -> PluginError:
    """Return the error to raise for a call that no plugin answered and one failed."""
    is_answer = isinstance(problem.cause, AnswerError)
    error = PluginError(
        f"plugin {problem.plugin}",
        f"{problem.error} ({problem.place})"
        if is_answer
        else f"it raised {problem.error} in {problem.place}",
        "an answer is needed and no other plugin gave one",
        f"check the arguments; {problem.way_out}"
        if problem.is_own
        else f"check the arguments, {problem.way_out}",
    )
    error.said_by(problem.plugin)
    return error


def disable_line(plugin: str) -> str:
    """Return the command that keeps a plugin from loading."""
    return f"sane-plugins plugins disable {shlex.quote(plugin)}"
