"""What is needed of any answer: names, types, numbers; `AnswerError` says in a clause what is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Any

from sane_plugins.plugins.problems import AnswerError

_MAX_NAME = 100


def require_no_coroutine(answer: Any) -> None:
    """Raise `AnswerError` for what has yet to run; it is closed, since nobody will await it."""
    if inspect.isawaitable(answer) or inspect.isasyncgen(answer) or inspect.isgenerator(answer):
        close = getattr(answer, "close", None)
        if callable(close):
            close()
        raise AnswerError(f"it returned {kind_of(answer)}, and hooks are plain functions")


def require_name(name: Any) -> None:
    """Raise `AnswerError` unless a name can be shown and typed."""
    if not isinstance(name, str):
        raise AnswerError(f"its name is {kind_of(name)} where a text is needed")
    text = str(name)  # what will be shown of a subclass
    if not text.strip() or not text.isprintable() or len(text) > _MAX_NAME:
        raise AnswerError(f"its name is not a printable text of 1 to {_MAX_NAME} characters")


def require_methods(value: Any, *methods: str) -> None:
    """Raise `AnswerError` for a class, and for an object without these methods."""
    if isinstance(value, type):
        raise AnswerError(f"it is the class {value.__name__} where an object is needed")
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise AnswerError(f"it is {kind_of(value)} without a method {method}")


def require_types(value: Any, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    """Raise `AnswerError` unless the attributes are of these types."""
    for field, kind in fields.items():
        if not isinstance(found := getattr(value, field, None), kind):
            raise AnswerError(f"its {field} is {kind_of(found)}")


def require_share(value: Any, name: str) -> None:
    """Raise `AnswerError` unless it is a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise AnswerError(f"its {name} is {show_value(value)}, and a number from 0 to 1 is needed")


def wrong(answer: Any, needed: str) -> AnswerError:
    """Return the error for an answer of another kind than is needed."""
    return AnswerError(f"it returned {kind_of(answer)} where {needed} is needed")


def is_number(value: Any) -> bool:
    """Return whether it is a real number and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor."""
    return tuple(tensor.shape)


def show_value(value: Any) -> str:
    """Return a value's text in short; that of an unknown object may be long, or raise."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | bool) else type(value).__name__


def kind_of(value: Any) -> str:
    """Return the name of its type, with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
