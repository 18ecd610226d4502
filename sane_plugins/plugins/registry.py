"""The plugins of one manager: which are loaded, which are kept from loading, and what was left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from inspect import signature
from time import perf_counter
from types import ModuleType
from typing import Any

from pluggy import PluginManager

from sane_plugins.errors import PluginError
from sane_plugins.plugins.disabled import (
    DisabledPlugin,
    SaneErrorT,
    describe_disabled,
    disabled_names,
    or_enable,
)
from sane_plugins.plugins.installed import (
    distribution_name,
    distribution_version,
    how_to_enable,
    installed_points,
    is_enabled,
    is_ours,
    load_point,
    parse_name_list,
    plugin_names,
)
from sane_plugins.plugins.problems import PluginNote, Problem, Record, disable_line, failure_of
from sane_plugins.plugins.validation import (
    describe_oddities,
    make_for_host,
    require_arguments,
    require_supported,
)

_IMPORT_LATE = "import libraries late, inside the hooks, after they declined"


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One registered plugin: its name, where it came from, and the hooks it implements."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]


class PluginRegistry:
    """The plugins of one manager. `problems` lists the plugins and answers that were left out.

    `Host` adds what can be done with them. `hooks` is the module of the specifications.
    """

    def __init__(self, pm: PluginManager, hooks: ModuleType) -> None:
        self.pm = pm
        self.load_seconds: dict[str, float] = {}  # what the import of each plugin took
        self._record = Record(self.is_own)
        self._points: dict[str, EntryPoint] = {}
        self._to_enable: dict[str, str] = {}
        self._distributions: dict[str, tuple[str, str]] = {}
        self._own: set[str] = set()
        self._version = hooks.HOOKSPEC_VERSION
        self._hooks = {name: x for name, x in vars(hooks).items() if name.startswith("sane_")}

    @property
    def problems(self) -> list[Problem]:
        """Return the plugins, and their answers, that were left out: one row for each plugin and place."""
        return self._record.problems

    @property
    def notes(self) -> list[PluginNote]:
        """Return what authors of plugins should know: hooks that are never called, and what is slow."""
        return self._record.notes

    def load_installed(self, allowed: Callable[[EntryPoint], bool] | None = None) -> None:
        """Register every installed plugin that is `allowed`: by default, as `Host.installed` says."""
        points = installed_points(self._record.leave_out)
        self._points = {point.name: point for point in reversed(points)} | self._points
        if allowed is None:
            disabled, failure = failure_of(disabled_names)
            if failure is not None:
                self._record.leave_out("(list of disabled plugins)", failure)
            way = partial(how_to_enable, disabled=disabled or frozenset())
            self._to_enable = {name: way(point) for name, point in self._points.items()}
            allowed = partial(is_enabled, disabled=disabled or frozenset())
        for point in filter(allowed, points):
            # A plugin's import may raise anything, or exit, and must not end the host.
            _, failure = failure_of(partial(self._register_point, point))
            if failure is not None:
                self._record.leave_out(point.name, failure)
        installed_names: set[str] = set().union(*map(plugin_names, points))
        for name in sorted(
            parse_name_list(os.environ.get("SANE_PLUGINS_LOAD", "")) - installed_names
        ):
            self._record.leave_out(
                name, LookupError("SANE_PLUGINS_LOAD names it, and nobody installed it")
            )

    def register(self, plugin: Any, name: str) -> None:
        """Register a plugin, or what its `sane_plugin(host)` returns. Raises what pluggy raises."""
        key = self._registered_name(name)
        was_registered = self.pm.has_plugin(key)
        made = make_for_host(self, plugin)
        require_arguments(made, self._arguments_of)
        try:
            self._add_to_manager(made, name)
        except BaseException:  # older releases of pluggy leave the plugin half registered
            if not was_registered and self.pm.has_plugin(key):
                self.pm.unregister(name=key)
            raise
        for topic, text in describe_oddities(made, self._hooks):
            self._record.note(name, text, topic)

    def plugins(self) -> list[PluginInfo]:
        """Describe the registered plugins."""
        named = self.pm.list_name_plugin()
        return [self._info(name) for name, plugin in named if plugin is not None]

    @property
    def disabled(self) -> list[str]:
        """Return the plugins that are installed and kept from loading."""
        return sorted(filter(self.is_off, self._points))

    def disabled_plugins(self) -> list[DisabledPlugin]:
        """Describe the plugins that are installed and kept from loading."""
        ways = self._to_enable
        return [describe_disabled(self._points[x], ways.get(x, "")) for x in self.disabled]

    def or_disabled(self, error: SaneErrorT) -> SaneErrorT:
        """Return an error of what nobody knows, with the plugins that are kept from loading as a way out."""
        ways = {name: self._to_enable.get(name, "") for name in self.disabled}
        return or_enable(error, {name: way for name, way in ways.items() if way})

    def origin(self, name: str) -> tuple[str, str]:
        """Return the distribution and the version of an installed plugin, loaded or not; empty of others."""
        point = self._points.get(name)
        return (
            ("", "") if point is None else (distribution_name(point), distribution_version(point))
        )

    def way_without(self, name: str) -> str:
        """Return the command that keeps an installed plugin from loading; empty for others, and 'builtin'."""
        can_be = name in self._points and name != "builtin" and parse_name_list(name)
        return disable_line(name) if can_be else ""

    def is_own(self, name: str) -> bool:
        """Return whether a plugin of that name came with this package."""
        return self._registered_name(name) in self._own

    def is_off(self, name: str) -> bool:
        """Return whether a plugin of that name is installed but disabled, blocked or unregistered."""
        broken = {problem.plugin for problem in self.problems}
        is_registered = any(map(self.pm.has_plugin, (name, self._registered_name(name))))
        return name in self._points and not is_registered and name not in broken

    # Loading

    def _registered_name(self, name: str) -> str:
        """Return the name under which the manager registers a plugin."""
        return name

    def _add_to_manager(self, plugin: Any, name: str) -> None:
        self.pm.register(plugin, name=self._registered_name(name))

    def _plain_name(self, key: str) -> str:
        """Return the name of a plugin, given that under which the manager registers it."""
        return key

    def _register_point(self, point: EntryPoint) -> None:
        name, key = point.name, self._registered_name(point.name)
        if self.pm.is_blocked(key):
            return
        if self.pm.has_plugin(key):
            other = self._distributions.get(key, ("another", ""))[0]
            raise PluginError(
                f"plugin {name} of {distribution_name(point)}",
                f"{other} has a plugin of that name too",
                "a name is given once",
                "rename the entry point, or uninstall one of them",
            )
        if is_ours(point):
            self._own.add(key)
        started = perf_counter()
        try:
            plugin = load_point(point)
            require_supported(plugin, name, self._version)
            self.register(plugin, name)
        finally:
            self.load_seconds[name] = perf_counter() - started
            self._record.note_if_slow(name, "its import", self.load_seconds[name], _IMPORT_LATE)
        self._distributions[key] = distribution_name(point), distribution_version(point)

    def _arguments_of(self, hook: str) -> Sequence[str] | None:
        """Return the arguments of a hook, of ours and of this manager's; None where nobody specifies it."""
        caller = getattr(self.pm.hook, hook, None)
        theirs = caller.spec.argnames if caller is not None and caller.spec is not None else None
        if hook not in self._hooks:
            return theirs
        return [*dict.fromkeys((*signature(self._hooks[hook]).parameters, *(theirs or ())))]

    def _info(self, name: str) -> PluginInfo:
        distribution, version = self._distributions.get(name, ("", ""))
        implemented = tuple(
            hook
            for hook, caller in sorted(vars(self.pm.hook).items())
            if caller.has_spec() and any(x.plugin_name == name for x in caller.get_hookimpls())
        )
        return PluginInfo(name=name, distribution=distribution, version=version, hooks=implemented)
