"""A host with one plugin beside ours, whatever else is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pluggy import PluginManager

from sane_plugins import hooks
from sane_plugins.host import PROJECT, Host
from sane_plugins.plugins import Problem, is_ours
from sane_plugins.testing.contract import ContractError


def empty_host() -> Host:
    """Return a host without any plugin: it checks answers as all hosts do."""
    pm = PluginManager(PROJECT)
    pm.add_hookspecs(hooks)
    return Host(pm)


def host_with(plugin: Any, name: str = "") -> Host:
    """Return a host with a plugin beside ours; others that are installed are left out.

    `plugin` is a module, an object, or has a `sane_plugin(host)`. Raises what pluggy raises, and
    `ContractError` for what is no error there and makes the plugin useless, such as a misspelt hook.
    """
    host, name = empty_host(), name or plugin_name(plugin)
    host.load_installed(is_ours)
    host.register(plugin, name)
    for note in host.notes:
        if note.plugin == name:
            raise ContractError(f"plugin {name}: {note.text}")
    return host


def plugin_name(plugin: Any) -> str:
    """Return the name to show of a plugin: that of its module, or of its class."""
    return str(getattr(plugin, "__name__", type(plugin).__name__))


def require_no_problem(problems: Sequence[Problem]) -> None:
    """Raise `ContractError` for the first answer that a host would leave out."""
    for problem in problems:
        place = f", {problem.place}" if problem.place else ""
        raise ContractError(f"plugin {problem.plugin}{place}: {problem.error}") from problem.cause
