"""Pass options to a command as dataclasses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any


def dataclass_options(**classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hand options to a command as dataclasses: `dataclass_options(output=OutputFiles)`.

    An option goes to the first class that has a field of its name, so a new option is declared on the command
    and in its class only. Fields that no option sets keep their defaults.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {
                name: _take_fields(option_class, given) for name, option_class in classes.items()
            }
            command(**values, **given)

        return run

    return wrap


def _take_fields(option_class: Any, given: dict[str, Any]) -> Any:
    return option_class(
        **{f.name: given.pop(f.name) for f in fields(option_class) if f.name in given}
    )
