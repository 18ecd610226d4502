"""Commands of `sane-plugins` that take `org/name` for what they take as `hf:org/name`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import click

from sane_plugins.cli.lazy_commands import LazyCommands
from sane_plugins.errors import SourceError

_HUB = "hf:"  # `sane_plugins.formats.HUB`; its room is not loaded to show help
_OF_FILES = (".", "/", "~", "\\")  # no name of the hub begins so
_NETWORKS = ("--among",)  # options that name networks, as every argument does
_NAMES = (
    "A network is named org/name[@revision][/path], or by a path that begins with './', '../' or '/'; names"
    " with a colon, such as torchvision:resnet18, are those of sane-plugins."
)


class HubCommands(LazyCommands):
    """Table of commands whose networks are names of the hub, and of commands of its `own`."""

    def __init__(self, commands: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        super().__init__({**commands, **own})
        self._own = frozenset(own)

    def __getitem__(self, name: str) -> click.Command:
        """Return a command, imported on the first look-up."""
        command = super().__getitem__(name)
        return command if name in self._own else _on_hub(command)


class HubName(click.types.StringParamType):
    """A name of the hub, or a path of this machine; other sources, which have a colon, stay."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a name of the hub as `hf:name`, and another source as it is."""
        text = str(value)
        if ":" in text or text.startswith(_OF_FILES):
            return text
        source = _HUB + text
        if os.path.lexists(text) and not _is_cached(source):
            self.fail(
                f"'{text}' is a path here and no name in the cache; write './{text}'.", param, ctx
            )
        return source


def _on_hub(command: click.Command) -> click.Command:
    """Return a command whose arguments, and options that name networks, are `HubName`."""
    changed = copy.copy(command)
    changed.params = [_of_names(x) if _names_networks(x) else x for x in command.params]
    changed.help = (command.help or "").partition("Example: sane-plugins")[0].rstrip()
    changed.epilog = _NAMES
    return changed


def _names_networks(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument) or bool({*parameter.opts} & {*_NETWORKS})


def _of_names(parameter: click.Parameter) -> click.Parameter:
    changed = copy.copy(parameter)
    changed.type = HubName()
    return changed


def _is_cached(source: str) -> bool:
    from sane_plugins.formats import cached_path

    try:
        return cached_path(source).exists()
    except SourceError:
        return False
