"""Options of commands that predict with property heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_FILE = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def heads_options(command: _Command) -> _Command:
    """Add --heads, --like, --sane and --device, given as `heads`, `like`, `sane` and `device`."""
    command = click.option("--device", default="cpu", show_default=True, help="A torch device.")(
        command
    )
    command = click.option(
        "--sane", type=_FILE, help="The SANE that they were fitted with, if another."
    )(command)
    command = click.option(
        "--like",
        metavar="ZOO",
        help="Networks are like those of this zoo, one of those that the heads were fitted on.",
    )(command)
    return click.option("--heads", type=_FILE, help="Heads of your own, from 'heads fit'.")(command)
