"""What is wrong in a graph, and how what was found is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GraphFault:
    """What is wrong in a graph: the layer, tensor or field, what was found, and what is needed."""

    place: str
    found: str
    needed: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}, and {self.needed}"


def type_of(value: Any) -> str:
    """Return what a value is, with its article."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def short(dtype: Any) -> str:
    """Return a type of torch as its users write it."""
    return str(dtype).removeprefix("torch.")[:60]


def show(value: Any) -> str:
    """Return a plain value, shortened, and of others what they are."""
    is_plain = isinstance(value, str | int | float | tuple | list)
    return f"{value!r:.60}" if is_plain else type_of(value)
