"""Calls of plugins: one that fails is recorded, and the others are asked all the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import local
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pluggy import Result

from sane_plugins.errors import SaneError
from sane_plugins.plugins.answers import MANY_ANSWERS, check_answer
from sane_plugins.plugins.problems import AnswerError, Problem, Record, failure_of

if TYPE_CHECKING:
    from pluggy import HookImpl

_OBSERVED = "sane_progress"


class _Asking(local):
    """What this thread is asking: (plugin, hook, arguments), the outermost question first."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, str, Mapping[str, Any]]] = []


_asking = _Asking()


def is_wrapper(implementation: HookImpl) -> bool:
    """Return whether an implementation wraps the others instead of answering itself."""
    return implementation.wrapper or implementation.hookwrapper


def pick_arguments(implementation: HookImpl, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a call's arguments that an implementation names, with a default or without."""
    left_out = getattr(implementation.function, "left_out", ())  # by the program's specification
    names = (*implementation.argnames, *implementation.kwargnames, *left_out)
    return {name: arguments[name] for name in names if name in arguments}


def ask(
    record: Record,
    hook: str,
    plugin: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    is_own: bool = False,
) -> tuple[Any, Problem | None]:
    """Call an implementation; return its checked answer and None, or None and its problem.

    A `SaneError` of a hook whose first answer counts is raised: the source was the plugin's, and wrong.
    A plugin that asks its host what it is being asked itself passes, so that the others answer it.
    One that is not our own is named in what it raises, and gets a note where it takes long to offer, to
    observe, or to answer None.
    """
    if _is_asked_already(plugin, hook, arguments):
        return None, None
    passed = () if hook in MANY_ANSWERS else (SaneError,)
    started = perf_counter()
    _asking.questions.append((plugin, hook, arguments))
    try:
        with _naming("" if is_own else plugin):
            answer, failure = failure_of(lambda: function(**arguments), *passed)
    finally:
        _asking.questions.pop()
    seconds = perf_counter() - started
    if hook == _OBSERVED and not is_own:
        record.note_if_slows_jobs(plugin, hook, seconds)
    elif not is_own and (answer is None or hook in MANY_ANSWERS):
        record.note_if_slow(plugin, hook, seconds)
    if answer is not None:
        answer, failure = failure_of(
            lambda: check_answer(
                hook, answer, arguments, lambda place, error: record.leave_out(plugin, error, place)
            ),
            SaneError,  # of strict mode
        )
    return answer, None if failure is None else record.leave_out(plugin, failure, hook)


def _is_asked_already(plugin: str, hook: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a plugin is asked from within its own answer to the same question."""
    return any(
        plugin == other
        and hook == other_hook
        and all(_is_same(value, before.get(name)) for name, value in arguments.items())
        for other, other_hook, before in _asking.questions
    )


def _is_same(value: Any, other: Any) -> bool:
    return value is other or (isinstance(value, str | Path) and bool(value == other))


def guard_implementation(
    record: Record, hook: str, plugin: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a function for another program's manager that answers None where a plugin fails."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def guarded(*values: Any, **named: Any) -> Any:
        arguments = {**dict(zip(names, values, strict=False)), **named}
        return ask(record, hook, plugin, function, arguments)[0]

    guarded.unguarded = function  # type: ignore[attr-defined]
    return guarded


def guard_wrapper(
    record: Record, hook: str, plugin: str, function: Callable[..., Any], is_old_style: bool
) -> Callable[..., Generator[None, Any, Any]]:
    """Return a wrapper, of pluggy's newer kind, that leaves the answer as it was where a plugin's fails."""

    def leave_out(error: BaseException) -> None:
        record.leave_out(plugin, error, hook)

    @wraps(function)
    def guarded(*values: Any, **named: Any) -> Generator[None, Any, Any]:
        with _naming(plugin):
            wrapper, failure = failure_of(lambda: _start(function(*values, **named)), SaneError)
        if failure is not None:
            leave_out(failure)
            return (yield)
        result: Result[Any] = Result(None, None)
        try:
            result.force_result((yield))
        except BaseException as error:
            result.force_exception(error)
        with _naming(plugin):
            changed, failure = failure_of(
                lambda: _finish(hook, wrapper, result, is_old_style), SaneError
            )
        if changed is not None:
            return changed.get_result()
        if failure is not result.exception:
            leave_out(failure)
        return result.get_result()

    return guarded


@contextmanager
def _naming(plugin: str) -> Iterator[None]:
    """Name a plugin in a `SaneError` that passes, unless another is named in it."""
    try:
        yield
    except SaneError as error:
        error.said_by(plugin)
        raise


def _start(wrapper: Any) -> Any:
    if not inspect.isgenerator(wrapper):
        raise AnswerError("it wraps a hook and does not yield")
    for _ in wrapper:
        return wrapper
    raise AnswerError("it wraps a hook and does not yield")


def _finish(hook: str, wrapper: Any, inner: Result[Any], is_old_style: bool) -> Result[Any]:
    """Resume a wrapper with the others' result; return what it makes of it."""
    # What it is given, it may change; what the others answered must remain.
    outcome: Result[Any] = Result(_answer_of(inner), inner.exception)
    try:
        if is_old_style:
            wrapper.send(outcome)
        elif inner.exception is None:
            wrapper.send(inner.get_result())
        else:
            wrapper.throw(inner.exception)
    except StopIteration as stop:
        if not is_old_style:
            outcome = Result(stop.value, None)
    else:
        wrapper.close()
        raise AnswerError("it wraps a hook and yields twice")
    return _checked(hook, inner, outcome)


def _checked(hook: str, inner: Result[Any], outcome: Result[Any]) -> Result[Any]:
    """Return a wrapper's outcome; raise `AnswerError` if the answer is gone, or became a wrong one."""
    error = outcome.exception
    if error is not None and error is not inner.exception and not isinstance(error, SaneError):
        raise error  # forced by a wrapper of the older kind
    if error is not None or hook in MANY_ANSWERS:
        return outcome
    value, before = outcome.get_result(), _answer_of(inner)
    if value is None and before is not None:
        raise AnswerError("its wrapper returned None in place of the answer")
    if value is before or value is None:
        return outcome
    return Result(check_answer(hook, value, {}, _raise), None)


def _answer_of(result: Result[Any]) -> Any:
    return None if result.exception else result.get_result()


def _raise(_: str, error: BaseException) -> None:
    raise error
