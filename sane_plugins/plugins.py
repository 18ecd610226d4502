"""Which installed plugins are loaded, what they answer, and who is to blame where they do not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from sane_plugins.errors import PluginError

if TYPE_CHECKING:
    import click
    from pluggy import HookImpl


def wanted(point: EntryPoint) -> bool:
    """Tell whether SANE_PLUGINS_LOAD and SANE_PLUGINS_DISABLE, which wins, allow a plugin."""
    only = os.environ.get("SANE_PLUGINS_LOAD")
    if names(point) & listed(os.environ.get("SANE_PLUGINS_DISABLE", "")):
        return False
    return only is None or bool(names(point) & listed(only))


def listed(text: str) -> set[str]:
    """Return the names in a list with commas, as package indexes compare them."""
    return {re.sub(r"[-_.]+", "-", name.strip()).lower() for name in text.split(",")} - {""}


def names(point: EntryPoint) -> set[str]:
    """Return the names that a plugin answers to: its entry point's and its distribution's."""
    return listed(f"{point.name},{distribution(point)}")


def distribution(point: EntryPoint) -> str:
    """Return the name of the distribution that a plugin came with."""
    return point.dist.name if point.dist else ""


def made_for(host: Any, plugin: Any) -> Any:
    """Return what a plugin's `sane_plugin(host)` makes for a host; one without is the same for all."""
    make = getattr(plugin, "sane_plugin", None)
    return plugin if make is None else make(host)


@dataclass(frozen=True)
class Problem:
    """A plugin that is left out, or an answer of it that is, and why."""

    plugin: str
    error: str
    cause: BaseException | None = field(default=None, compare=False, repr=False)


def wraps(implementation: HookImpl) -> bool:
    """Tell whether an implementation wraps the others instead of answering itself."""
    return implementation.wrapper or implementation.hookwrapper


def culprit(error: Exception, implementations: Sequence[HookImpl]) -> str:
    """Return the name of the plugin in whose code a call of several failed."""
    codes = {getattr(x.function, "__code__", None): x.plugin_name for x in implementations}
    frames = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    return next((codes[code] for code in reversed(frames) if code in codes), "(unknown)")


def raised(problem: Problem, hook: str) -> PluginError:
    """Return the error for a call that only failed."""
    return PluginError(
        f"plugin {problem.plugin}",
        f"it raised {problem.error} in {hook}",
        "an answer is needed and no other plugin gave one",
        "check the arguments, or repair the plugin or disable it with SANE_PLUGINS_DISABLE",
    )


def mapping(offered: Any) -> Mapping[str, Any]:
    """Return what a plugin offers by name; raise `TypeError` where it is no mapping."""
    if not isinstance(offered, Mapping):
        raise TypeError(f"it returned {type(offered).__name__}, but a mapping by name is needed")
    return offered


def by_name(offered: Sequence[click.Command]) -> dict[str, click.Command]:
    """Return commands by their names."""
    return {str(command.name): command for command in offered}
