"""Table of commands that are imported when they are run or their help is shown."""

from __future__ import annotations

from collections import UserDict
from pkgutil import resolve_name
from typing import Any

import click


class LazyCommands(UserDict[str, Any]):
    """Commands by name, given as 'module:attribute' and imported when one is looked up.

    The recipe of click's documentation overrides methods of the group instead; click's own list of
    names, from which it suggests one for a typing error, is then empty.
    """

    def __getitem__(self, name: str) -> click.Command:
        """Return a command, imported on the first look-up."""
        command = self.data[name]
        if isinstance(command, str):
            command = self.data[name] = resolve_name(command)
        if not isinstance(command, click.Command):
            raise TypeError(f"the command '{name}' is a {type(command).__name__}")
        return command
