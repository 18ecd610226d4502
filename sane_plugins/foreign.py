"""The way into a host program's own plugin manager."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isfunction, isroutine
from types import FunctionType, ModuleType
from typing import Any

from pluggy import HookimplMarker, HookspecMarker, PluginManager

from sane_plugins import hooks
from sane_plugins.errors import PluginError
from sane_plugins.host import PROJECT, Host

_SPECS = {name: value for name, value in vars(hooks).items() if name.startswith("sane_")}


def attach(pm: PluginManager) -> Callable[[], None]:
    """Add our hooks and all installed plugins to a host's own plugin manager; return what undoes it.

    A manager reads only markers of its own project name, so re-marked copies are added. Attaching twice adds
    nothing. Raises `PluginError` where the manager took none of our hooks.
    """
    marker = f"{PROJECT}:specifications"
    if pm.has_plugin(marker):
        return partial(_detach, pm)
    spec, impl = HookspecMarker(pm.project_name), HookimplMarker(pm.project_name)
    specifications = ModuleType(f"{PROJECT}_specifications")
    for name, function in _SPECS.items():
        options = getattr(function, f"{PROJECT}_spec")
        setattr(specifications, name, spec(_clone(function), firstresult=options["firstresult"]))
    if not hasattr(pm.hook, "sane_open"):
        pm.add_hookspecs(specifications)
    pm.register(specifications, name=marker)
    host = Host.installed()
    for name, plugin in host.pm.list_name_plugin():
        pm.register(_remarked(plugin, impl), name=f"{PROJECT}:{name}")
    if not any(caller.get_hookimpls() for caller in (getattr(pm.hook, n) for n in _SPECS)):
        _detach(pm)
        raise PluginError(
            f"host '{pm.project_name}'", "none of our hooks was taken", "at least one is needed",
            "see 'sane-plugins list' for plugins that were left out",
        )  # fmt: skip
    return partial(_detach, pm)


def _detach(pm: PluginManager) -> None:
    for name, _ in list(pm.list_name_plugin()):
        if name.startswith(f"{PROJECT}:"):
            pm.unregister(name=name)


def _remarked(plugin: Any, impl: HookimplMarker) -> ModuleType:
    """Return a copy of a plugin whose implementations carry the host's marker."""
    copy = ModuleType(f"{PROJECT}_plugin")
    for name in dir(plugin):
        function = getattr(plugin, name)
        options = getattr(function, f"{PROJECT}_impl", None) if isroutine(function) else None
        if options:
            fresh = _clone(function) if isfunction(function) else partial(function)
            kept = {key: options[key] for key in ("tryfirst", "trylast")}
            setattr(copy, name, impl(fresh, optionalhook=True, **kept))
    return copy


def _clone(function: FunctionType) -> FunctionType:
    """Return the same function without its marks: two hosts in one process must not share them."""
    fresh = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    fresh.__doc__, fresh.__kwdefaults__ = function.__doc__, function.__kwdefaults__
    return fresh
