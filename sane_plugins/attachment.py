"""The way into a host program's own plugin manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from pluggy import HookimplMarker, HookspecMarker, PluginManager

from sane_plugins import hooks
from sane_plugins.errors import PluginError
from sane_plugins.host import PROJECT, Host
from sane_plugins.plugins import Problem

_SPECS = {name: value for name, value in vars(hooks).items() if name.startswith("sane_")}


_MARKER = f"{PROJECT}:specifications"


@dataclass(frozen=True, eq=False)
class Attachment:
    """What `attach` added to a manager. Call it to undo; `problems` names plugins that were left out."""

    pm: PluginManager
    problems: Sequence[Problem]

    def __call__(self) -> None:
        """Remove our plugins; pluggy keeps specifications."""
        _detach(self.pm)


def attach(pm: PluginManager) -> Attachment:
    """Add our hooks and all installed plugins to a host's own plugin manager; return what undoes it.

    A manager reads only markers of its own project name, so re-marked copies are added. Attaching twice adds
    nothing. Raises `PluginError` where the manager took none of our hooks.
    """
    attached: Attachment | None = pm.get_plugin(_MARKER)
    if attached is not None:
        return attached
    host = Host.installed()
    attached = Attachment(pm, host.problems)
    _specify(pm)
    pm.register(attached, name=_MARKER)
    present = {id(plugin) for plugin in pm.get_plugins()}
    for name, plugin in host.pm.list_name_plugin():
        if plugin is not None and id(plugin) not in present:
            pm.register(_remarked(host.pm, plugin, pm.project_name), name=f"{PROJECT}:{name}")
    if not any(getattr(pm.hook, name).get_hookimpls() for name in _SPECS):
        _detach(pm)
        raise PluginError(
            f"host '{pm.project_name}'",
            "none of our hooks was taken",
            "at least one is needed",
            "see 'sane-plugins list' for plugins that were left out",
        )
    return attached


def _specify(pm: PluginManager) -> None:
    """Add those of our specifications that the manager does not have, as copies with its marker."""
    spec = HookspecMarker(pm.project_name)
    missing = ModuleType(f"{PROJECT}_specifications")
    for name, function in _SPECS.items():
        caller = getattr(pm.hook, name, None)
        if caller is None or not caller.has_spec():
            options = getattr(function, f"{PROJECT}_spec")
            setattr(missing, name, spec(_clone(function), firstresult=options["firstresult"]))
    if any(name in _SPECS for name in vars(missing)):
        pm.add_hookspecs(missing)


def _detach(pm: PluginManager) -> None:
    for name, _ in list(pm.list_name_plugin()):
        if name.startswith(f"{PROJECT}:"):
            pm.unregister(name=name)


def _remarked(ours: PluginManager, plugin: Any, project: str) -> ModuleType:
    """Return a copy of a plugin whose implementations carry the host's marker."""
    impl = HookimplMarker(project)
    copy = ModuleType(f"{PROJECT}_plugin")
    for name in dir(plugin):
        options = ours.parse_hookimpl_opts(plugin, name)
        if options:
            function = getattr(plugin, name)
            fresh = impl(_clone(getattr(function, "__func__", function)), **_optional(options))
            bound = isinstance(function, MethodType)
            setattr(copy, name, MethodType(fresh, function.__self__) if bound else fresh)
    return copy


def _optional(options: Any) -> dict[str, Any]:
    """Keep what a plugin asked for, and let a host with other specifications pass its checks."""
    return {**options, "optionalhook": True}


def _clone(function: FunctionType) -> FunctionType:
    """Return the same function without its marks: two hosts in one process must not share them."""
    fresh = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    fresh.__doc__, fresh.__kwdefaults__ = function.__doc__, function.__kwdefaults__
    # Decorators leave `__wrapped__` there, from which pluggy reads the arguments' names.
    fresh.__dict__.update({k: v for k, v in vars(function).items() if not k.startswith(PROJECT)})
    return fresh
