"""Check the types of public arguments; errors name the argument, the value given and the type needed."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from sane_plugins.errors import UsageError

T = TypeVar("T")

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


def find_offer(kind: str, name: str, offers: Mapping[str, T], way_out: str = "") -> T:
    """Return what plugins offer under a name: an encoder, an engine. Raises `UsageError` where none does."""
    if name not in offers:
        raise UsageError(
            f"{kind} '{name}'",
            f"there is no such {kind}",
            f"one of {', '.join(sorted(offers))} is needed",
            way_out or "check the name, or install its plugin",
        ).as_unknown()
    return offers[name]


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


def from_plain(hint: Any, stored: object, place: str) -> Any:
    """Make a value of the annotated type of plain data of JSON, which may come from anyone.

    Dataclasses are objects, tuples are lists, enumerations and paths are text. Raises `ArgumentTypeError`
    about `place` and the field for what does not fit; numbers must be finite.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType) and type(None) in arguments:
        if stored is None:
            return None
        hint = Union[tuple(x for x in arguments if x is not type(None))]  # noqa: UP007
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(stored, list):
        kinds = arguments[:1] * len(stored) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(stored):
            return tuple(from_plain(kind, x, place) for kind, x in zip(kinds, stored, strict=True))
    elif isinstance(hint, type) and isinstance(stored, Mapping) and is_dataclass(hint):
        return _dataclass_from_plain(hint, stored, place)
    elif isinstance(hint, type) and isinstance(stored, list) and hasattr(hint, "_fields"):
        kinds = tuple(typing.get_type_hints(hint).values())
        return hint(*from_plain(tuple.__class_getitem__(kinds), stored, place))
    elif isinstance(hint, type) and isinstance(stored, str) and issubclass(hint, Enum | Path):
        with suppress(ValueError):
            return hint(stored)
    elif isinstance(stored, float) and not isfinite(stored):
        pass
    elif _is_allowed(hint, stored):
        return stored
    raise ArgumentTypeError(
        place,
        f"{_describe_value(stored)} was given",
        f"{_describe_type(hint)} is needed",
        "see where it comes from",
    )


def _dataclass_from_plain(kind: type, stored: Mapping[str, Any], place: str) -> Any:
    hints = {x.name: _resolve_annotation(kind, x.type) for x in fields(kind) if x.init}
    required = {x.name for x in fields(kind) if x.default is x.default_factory is MISSING}
    for found, names in (
        ("is missing", required - stored.keys()),
        ("is not known", stored.keys() - hints.keys()),
    ):
        if names:
            name = f"'{min(map(str, names))[:80]}'"
            raise ArgumentTypeError(place, f"{name} {found}", "all and no others are needed", "")
    return kind(**{k: from_plain(hints[k], x, f"{place}, {k}") for k, x in stored.items()})


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
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            return all(_is_allowed(kinds[0], element) for element in value)
        return len(kinds) == len(value) and all(map(_is_allowed, kinds, value))
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
