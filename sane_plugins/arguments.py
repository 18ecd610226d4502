"""Check the types of public arguments; errors name the argument, the value given and the type needed."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union

from sane_plugins.errors import UsageError

# Accepted in place of the annotated type: NumPy's numbers, paths as text.
_ACCEPTED_TYPES: dict[type, Any] = {int: Integral, float: Real, Path: (Path, str)}


class ArgumentTypeError(UsageError, TypeError):
    """An argument has another type than the function takes."""


def require_type(argument: str, value: object, *needed: type, way_out: str = "") -> None:
    """Raise `ArgumentTypeError` if the value is of none of the types; `argument` is "function, name"."""
    if isinstance(value, needed) and not (isinstance(value, bool) and bool not in needed):
        return
    names = _join_with_or("None" if kind is type(None) else kind.__name__ for kind in needed)
    raise ArgumentTypeError(
        argument,
        f"{_describe_value(value)} was given",
        f"{names} is needed",
        way_out or "see help() of the function",
    )


def require_field_types(options: Any) -> None:
    """Raise `ArgumentTypeError` for a field of an option dataclass whose value its annotation does not allow.

    Annotations that say more than a type (protocols, nested generics) are not checked here.
    """
    for field in fields(options):
        value, hint = getattr(options, field.name), _resolve_annotation(type(options), field.type)
        if not _is_allowed(hint, value):
            raise ArgumentTypeError(
                f"{type(options).__name__}, {field.name}",
                f"{_describe_value(value)} was given",
                f"{_describe_type(hint)} is needed",
                f"see help({type(options).__name__})",
            )


def require_ranges(options: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise `UsageError` for a field of a dataclass outside its range, both ends included."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise UsageError(
                f"{type(options).__name__}, {name}",
                f"{_describe_value(value)} was given",
                f"it lies between {low} and {high}",
                f"see help({type(options).__name__})",
            )


def _resolve_annotation(owner: type, annotation: Any) -> Any:
    """Return the type of an annotation of ours; `object` if its name exists for type checkers only."""
    try:
        return eval(annotation, vars(sys.modules[owner.__module__]))
    except NameError:
        return object


def _is_allowed(hint: Any, value: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_is_allowed(element, value) for element in typing.get_args(hint))
    if origin is Literal:
        return any(value is element or value == element for element in typing.get_args(hint))
    if origin is tuple and isinstance(value, tuple | list):
        return all(_is_allowed(typing.get_args(hint)[0], element) for element in value)
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, _ACCEPTED_TYPES.get(kind, kind))


def _describe_type(hint: Any) -> str:
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is Literal:
        return _join_with_or(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _join_with_or(map(_describe_type, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _describe_value(value: object) -> str:
    if isinstance(value, str | int | float | Path | None):
        return repr(value)[:80]
    return f"a value of type {type(value).__name__}"


def _join_with_or(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
