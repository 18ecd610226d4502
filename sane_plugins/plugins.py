"""Which installed plugins to load, the form of their answers, and which one to blame for a failure."""

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


def is_enabled(point: EntryPoint) -> bool:
    """Return whether SANE_PLUGINS_LOAD and SANE_PLUGINS_DISABLE, which takes precedence, allow a plugin."""
    load_list = os.environ.get("SANE_PLUGINS_LOAD")
    if plugin_names(point) & parse_name_list(os.environ.get("SANE_PLUGINS_DISABLE", "")):
        return False
    return load_list is None or bool(plugin_names(point) & parse_name_list(load_list))


def parse_name_list(text: str) -> set[str]:
    """Return the names in a comma-separated list, normalised as package indexes do."""
    return {re.sub(r"[-_.]+", "-", name.strip()).lower() for name in text.split(",")} - {""}


def plugin_names(point: EntryPoint) -> set[str]:
    """Return the normalised names of a plugin: its entry point's and its distribution's."""
    return parse_name_list(f"{point.name},{distribution_name(point)}")


def distribution_name(point: EntryPoint) -> str:
    """Return the name of the distribution that a plugin came with."""
    return point.dist.name if point.dist else ""


def make_for_host(host: Any, plugin: Any) -> Any:
    """Return what a plugin's `sane_plugin(host)` makes for a host, or the plugin itself if it has none."""
    factory = getattr(plugin, "sane_plugin", None)
    return plugin if factory is None else factory(host)


@dataclass(frozen=True)
class Problem:
    """A plugin, or one of its answers, that was left out, and why."""

    plugin: str
    error: str
    cause: BaseException | None = field(default=None, compare=False, repr=False)


def is_wrapper(implementation: HookImpl) -> bool:
    """Return whether an implementation wraps the others instead of answering itself."""
    return implementation.wrapper or implementation.hookwrapper


def find_failing_plugin(error: Exception, implementations: Sequence[HookImpl]) -> str:
    """Return the name of the plugin whose code raised the error, given all that were called."""
    plugin_by_code = {getattr(x.function, "__code__", None): x.plugin_name for x in implementations}
    frames = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    return next(
        (plugin_by_code[code] for code in reversed(frames) if code in plugin_by_code), "(unknown)"
    )


def to_plugin_error(problem: Problem, hook: str) -> PluginError:
    """Return the error to raise for a call that no plugin answered and one failed."""
    return PluginError(
        f"plugin {problem.plugin}",
        f"it raised {problem.error} in {hook}",
        "an answer is needed and no other plugin gave one",
        "check the arguments, or repair the plugin or disable it with SANE_PLUGINS_DISABLE",
    )


def require_mapping(offered: Any) -> Mapping[str, Any]:
    """Return what a plugin offers by name; raise `TypeError` if it is not a mapping."""
    if not isinstance(offered, Mapping):
        raise TypeError(f"it returned {type(offered).__name__}, but a mapping by name is needed")
    return offered


def commands_by_name(offered: Sequence[click.Command]) -> dict[str, click.Command]:
    """Return commands by their names."""
    return {str(command.name): command for command in offered}
