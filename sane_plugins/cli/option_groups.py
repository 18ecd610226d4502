"""Options of a command as values: one dataclass for each group of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any


def grouped(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hand options to a command as dataclasses: `grouped(output=OutputFiles)`.

    An option belongs to the first group that has a field of its name: one that is added to the command and
    to a group needs no third place. Fields that no option sets keep their defaults.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: _taken(group, given) for name, group in groups.items()}
            command(**values, **given)

        return run

    return wrap


def _taken(group: Any, given: dict[str, Any]) -> Any:
    return group(**{f.name: given.pop(f.name) for f in fields(group) if f.name in given})
