"""Attach our hooks and plugins to a host program's own plugin manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isgeneratorfunction, signature
from threading import RLock
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker, PluginManager

from sane_plugins import hooks
from sane_plugins.errors import PluginError
from sane_plugins.host import PROJECT, Host
from sane_plugins.plugins import (
    Problem,
    copy_function,
    copy_with_marker,
    guard_implementation,
    guard_wrapper,
)

if TYPE_CHECKING:
    from pluggy import HookCaller

_HOOKSPECS = {name: value for name, value in vars(hooks).items() if name.startswith("sane_")}
# What our plugins are given where a program's own specification of a hook has no such argument.
_NOT_GIVEN: Mapping[str, Any] = {
    "options": None,
    "classes": None,
    "metadata": None,
    "like": None,
    "prompts": (),
}
_MARKER = f"{PROJECT}::specifications"  # no plugin's name, which follows one colon
# Two threads that attach to one manager would each find nothing there, and register everything twice;
# reentrant, since a plugin may attach while it is imported.
_attach_lock = RLock()


class AttachedHost(Host):
    """A host over another program's manager: its plugins, and copies of the installed ones.

    A manager reads only markers of its own project name, so copies carry that. Each has the name
    `sane_plugins:NAME`, by which the program can block or unregister it.
    """

    def _registered_name(self, name: str) -> str:
        return f"{PROJECT}:{name}"

    def _plain_name(self, key: str) -> str:
        return key.removeprefix(f"{PROJECT}:")

    def _add_to_manager(self, plugin: Any, name: str) -> None:
        if self.pm.project_name == PROJECT and (
            self.pm.has_plugin(name) or self.pm.is_registered(plugin)
        ):
            return  # it reads our markers, and the plugin is there
        key = self._registered_name(name)
        guard = None if key in self._own else partial(self._guarded, name)
        copy = copy_with_marker(plugin, self.pm.project_name, guard, self._not_given)
        self.pm.register(copy, name=key)

    def _not_given(self, hook: str) -> Mapping[str, Any]:
        """Return the arguments of a hook that the program's specification lacks, and their values."""
        if hook not in _HOOKSPECS:
            return {}
        caller = getattr(self.pm.hook, hook)
        return {name: _NOT_GIVEN[name] for name in _missing_arguments(caller) if name in _NOT_GIVEN}

    def _guarded(
        self, name: str, hook: str, options: Mapping[str, Any], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return a hook of another's plugin so that the program's own calls survive it too."""
        if options.get("wrapper") or options.get("hookwrapper"):
            is_old_style = bool(options.get("hookwrapper"))
            return guard_wrapper(self._record, hook, name, function, is_old_style)
        return guard_implementation(self._record, hook, name, function)


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
        """Remove our plugins; pluggy keeps specifications. Does nothing where this was undone before."""
        with _attach_lock:
            if self.pm.get_plugin(_MARKER) is self:
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
    with _attach_lock:
        attached: Attachment | None = pm.get_plugin(_MARKER)
        if attached is not None:
            return attached
        _add_missing_specs(pm)
        attached = Attachment(AttachedHost(pm))
        try:
            pm.register(attached, name=_MARKER)
            attached.host.load_installed()
            _require_implementations(pm)
        except BaseException:
            _detach(pm)
            raise
        return attached


def _add_missing_specs(pm: PluginManager) -> None:
    """Add our specifications that the manager lacks, as copies with its marker."""
    mark_spec = HookspecMarker(pm.project_name)
    missing = ModuleType(f"{PROJECT}_specifications")
    for name, function in _HOOKSPECS.items():
        caller = getattr(pm.hook, name, None)
        if caller is None or not caller.has_spec():
            options = getattr(function, f"{PROJECT}_spec")
            setattr(
                missing,
                name,
                mark_spec(copy_function(function), firstresult=options["firstresult"]),
            )
        elif lacking := sorted(_missing_arguments(caller) - set(_NOT_GIVEN)):
            raise PluginError(
                f"host '{pm.project_name}'",
                f"its own specification of {name} lacks {', '.join(lacking)}",
                "our plugins cannot do without",
                "add them, or leave that specification to attach",
            )
        if caller is not None and not caller.has_spec():
            _require_implementable(pm, caller, function)
    if any(name in _HOOKSPECS for name in vars(missing)):
        pm.add_hookspecs(missing)


def _missing_arguments(caller: HookCaller) -> set[str]:
    """Return the arguments of our specification of a hook that the program's lacks."""
    spec = caller.spec
    assert spec is not None, "specifications are added before plugins"
    return set(signature(_HOOKSPECS[caller.name]).parameters) - set(spec.argnames)


def _require_implementable(pm: PluginManager, caller: HookCaller, function: FunctionType) -> None:
    """Raise `PluginError` if a plugin of the program, registered before, does not fit our specification.

    pluggy would raise in the middle of adding specifications, and keep some.
    """
    known = set(signature(function).parameters)
    for implementation in caller.get_hookimpls():
        unknown = sorted(set(implementation.argnames) - known)
        wraps = implementation.wrapper or implementation.hookwrapper
        if unknown or (wraps and not isgeneratorfunction(implementation.function)):
            raise PluginError(
                f"host '{pm.project_name}'",
                f"its plugin {implementation.plugin_name} implements {caller.name} "
                + (f"with {', '.join(unknown)}" if unknown else "as a wrapper that does not yield"),
                f"our specification has {', '.join(sorted(known)) or 'no arguments'}",
                "correct or unregister that plugin",
            )


def _require_implementations(pm: PluginManager) -> None:
    if not any(getattr(pm.hook, name).get_hookimpls() for name in _HOOKSPECS):
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
