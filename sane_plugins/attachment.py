"""The way into a host program's own plugin manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from threading import RLock
from types import FunctionType, MethodType, ModuleType
from typing import Any

from pluggy import HookimplMarker, HookspecMarker, PluginManager

from sane_plugins import hooks
from sane_plugins.errors import PluginError
from sane_plugins.host import PROJECT, Host
from sane_plugins.plugins import Problem

_SPECS = {name: value for name, value in vars(hooks).items() if name.startswith("sane_")}
_MARKER = f"{PROJECT}:specifications"
_ours = PluginManager(PROJECT)  # reads our marks
# Two threads that attach to one manager would each find nothing there, and register everything twice;
# reentrant, since a plugin may attach while it is imported.
_attaching = RLock()


class AttachedHost(Host):
    """A host over another program's manager: its plugins, and copies of the installed ones.

    A manager reads only markers of its own project name, so copies carry that. Each has the name
    `sane_plugins:NAME`, by which the program can block or unregister it.
    """

    def _key(self, name: str) -> str:
        return f"{PROJECT}:{name}"

    def _add(self, plugin: Any, name: str) -> None:
        if self.pm.project_name == PROJECT and (
            self.pm.has_plugin(name) or self.pm.is_registered(plugin)
        ):
            return  # it reads our markers, and the plugin is there
        self.pm.register(_remarked(plugin, self.pm.project_name), name=self._key(name))


@dataclass(frozen=True, eq=False)
class Attachment:
    """What `attach` added to a manager. Call it to undo; `host` calls the manager's hooks with isolation."""

    host: Host
    __name__ = PROJECT  # some programs read it of everything that is registered

    @property
    def pm(self) -> PluginManager:
        """Return the program's manager."""
        return self.host.pm

    @property
    def problems(self) -> Sequence[Problem]:
        """Return the plugins that were left out, and why."""
        return self.host.problems

    def __call__(self) -> None:
        """Remove our plugins; pluggy keeps specifications."""
        with _attaching:
            _detach(self.pm)


def attach(pm: PluginManager) -> Attachment:
    """Add our hooks and all installed plugins to a host's own plugin manager; return what undoes it.

    Our abilities then work with the manager's plugins: theirs open sources and observe progress, and one of
    ours that is blocked or unregistered (`sane_plugins:onnx`) does nothing. Attaching twice adds nothing.
    Raises `PluginError`, and leaves no plugin behind, where the manager cannot take our hooks.
    """
    if not isinstance(pm, PluginManager):
        raise PluginError(
            f"host '{getattr(pm, 'project_name', type(pm).__name__)}'",
            f"its manager is a {type(pm).__module__}.{type(pm).__qualname__}",
            "a pluggy.PluginManager is needed",
            "use sane_plugins.Host.installed() beside it",
        )
    with _attaching:
        attached: Attachment | None = pm.get_plugin(_MARKER)
        if attached is not None:
            return attached
        _specify(pm)
        attached = Attachment(AttachedHost(pm))
        try:
            pm.register(attached, name=_MARKER)
            attached.host.load_installed()
            _require_taken(pm)
        except BaseException:
            _detach(pm)
            raise
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
        elif lacking := sorted(set(signature(function).parameters) - set(caller.spec.argnames)):
            raise PluginError(
                f"host '{pm.project_name}'",
                f"its own specification of {name} lacks {', '.join(lacking)}",
                "our plugins take all arguments of ours",
                "add them, or leave that specification to attach",
            )
    if any(name in _SPECS for name in vars(missing)):
        pm.add_hookspecs(missing)


def _require_taken(pm: PluginManager) -> None:
    if not any(getattr(pm.hook, name).get_hookimpls() for name in _SPECS):
        raise PluginError(
            f"host '{pm.project_name}'",
            "none of our hooks was taken",
            "at least one is needed",
            "see 'sane-plugins list' for plugins that were left out",
        )


def _detach(pm: PluginManager) -> None:
    for name, plugin in list(pm.list_name_plugin()):
        if plugin is not None and name.startswith(f"{PROJECT}:"):
            pm.unregister(name=name)


def _remarked(plugin: Any, project: str) -> ModuleType:
    """Return a copy of a plugin whose implementations carry the host's marker, with the plugin's own name.

    Each is named `PROJECT_HOOK`: some managers, such as pytest's, look at no other names.
    """
    impl = HookimplMarker(project)
    copy = ModuleType(getattr(plugin, "__name__", type(plugin).__name__))
    for name in dir(plugin):
        options = _ours.parse_hookimpl_opts(plugin, name)
        if options:
            function = getattr(plugin, name)
            fresh = impl(
                _clone(getattr(function, "__func__", function)), **_optional(options, name)
            )
            bound = isinstance(function, MethodType)
            copied = MethodType(fresh, function.__self__) if bound else fresh
            setattr(copy, f"{project}_{name}", copied)
    return copy


def _optional(options: Any, name: str) -> dict[str, Any]:
    """Keep what a plugin asked for, and let a host with other specifications pass its checks."""
    return {**options, "optionalhook": True, "specname": options["specname"] or name}


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
