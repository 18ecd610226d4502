"""The plugins of one process.

Light at import: what a plugin needs, it imports when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pluggy import PluginManager

from sane_plugins import hooks
from sane_plugins.errors import PluginError, SaneError, SourceError, UsageError
from sane_plugins.plugins import (
    Problem,
    by_name,
    culprit,
    distribution,
    listed,
    mapping,
    names,
    raised,
    wanted,
    wraps,
)
from sane_plugins.progress import Progress, reporting

if TYPE_CHECKING:
    import click
    from torch import nn

    from sane_plugins.features import EncodeOptions, Encoder, Encoding
    from sane_plugins.generation import Sampler
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.properties import AnyEstimate, AnyHead, PredictOptions
    from sane_plugins.tasks import Task
    from sane_plugins.weights import WeightGraph

PROJECT = "sane_plugins"


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One registered plugin: its name, where it came from, and the hooks it implements."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]


class Host:
    """The plugins of one process. `problems` names those that were left out."""

    def __init__(self, pm: PluginManager) -> None:
        self.pm = pm
        self.problems: list[Problem] = []
        self._distributions: dict[str, tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"Host({self.pm.project_name!r}, plugins={len(self.plugins())}, problems={len(self.problems)})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "Host: it holds the plugins of one process and cannot be pickled; make another one there with"
            " Host.installed()"
        )

    @classmethod
    def installed(cls) -> Host:
        """Load every installed plugin, one by one; a broken one is named and left out.

        SANE_PLUGINS_LOAD=a,b loads only these, SANE_PLUGINS_DISABLE=a,b all but these (names of entry points
        or distributions); SANE_PLUGINS_STRICT=1 raises `PluginError` instead of leaving one out.
        """
        pm = PluginManager(PROJECT)
        pm.add_hookspecs(hooks)
        host = cls(pm)
        # Ours first: no other distribution can take our names, and all others are asked before us.
        points = sorted(
            entry_points(group=PROJECT), key=lambda x: distribution(x) != "sane-plugins"
        )
        for point in filter(wanted, points):
            host._load(point)
        known: set[str] = set().union(*map(names, points))
        for name in sorted(listed(os.environ.get("SANE_PLUGINS_LOAD", "")) - known):
            host._left_out(name, LookupError("SANE_PLUGINS_LOAD names it, and nobody installed it"))
        return host

    @classmethod
    def active(cls) -> Host:
        """Return the host whose ability is being called, or else one with what is installed."""
        return _active.get() or cls.installed()

    # Reading and writing networks

    def open(self, source: Any) -> WeightGraph:
        """Read a network. Raises `SourceError` where no plugin knows the source."""
        graph: WeightGraph | None = self._first("sane_open", source=source)
        if graph is not None:
            return graph
        exists = isinstance(source, str | Path) and Path(source).exists()
        raise SourceError(
            _short(source),
            "no plugin reads this file" if exists else "no plugin knows it",
            "a module, a state dict, a file or a name such as torchvision:resnet18 is needed",
            "check the name and its suffix, or see 'sane-plugins list'",
        )

    def build(self, source: Any, classes: int | None = None) -> nn.Module:
        """Build a runnable module. Raises `SourceError` where no plugin can."""
        module: nn.Module | None = self._first("sane_build", source=source, classes=classes)
        if module is None:
            raise SourceError(
                _short(source),
                "no plugin builds a runnable network from it",
                "a name such as torchvision:resnet18 or package.module:function is needed",
                "check the name, or see 'sane-plugins list'",
            )
        return module

    def save(self, graph: WeightGraph, target: str | Path, *, force: bool = False) -> Path:
        """Write a network in the form that the target's suffix asks for."""
        from sane_plugins.atomic_files import require_free

        target = require_free(Path(target), force)
        path: Path | None = self._first("sane_save", graph=graph, target=target)
        if path is None:
            raise UsageError(
                target,
                f"no plugin writes '{target.suffix}' files",
                "a known suffix is needed",
                "write .safetensors, .pt, or the form that the network came in",
            )
        return path

    # Abilities

    def encode(self, source: Any, options: EncodeOptions | None = None) -> Encoding:
        """Encode a network."""
        found: Encoding = self._required("sane_encode", source=source, options=options)
        return found

    def predict(
        self, source: Any, options: PredictOptions | None = None
    ) -> Mapping[str, AnyEstimate]:
        """Predict a network's properties from its weights."""
        found: Mapping[str, AnyEstimate] = self._required(
            "sane_predict_properties", source=source, options=options
        )
        return found

    def initialize(
        self,
        target: Any,
        task: Task,
        prompts: Sequence[Any] = (),
        options: InitializeOptions | None = None,
    ) -> Initialization:
        """Initialise a module, or what a function builds, for a task; without prompts, from ours."""
        found: Initialization = self._required(
            "sane_initialize", target=target, task=task, prompts=prompts, options=options
        )
        return found

    # What plugins offer

    def encoders(self) -> dict[str, Encoder]:
        """Return all encoders by name."""
        return self._collected("sane_encoders")

    def samplers(self) -> dict[str, Sampler]:
        """Return all samplers by name."""
        return self._collected("sane_samplers")

    def property_heads(self) -> dict[str, AnyHead]:
        """Return all property heads by name."""
        return self._collected("sane_property_heads")

    def engines(self) -> dict[str, Any]:
        """Return all engines by name."""
        return self._collected("sane_engines")

    def commands(self) -> list[click.Command]:
        """Return the commands that plugins add."""
        return list(self._collected("sane_commands", by_name).values())

    def plugins(self) -> list[PluginInfo]:
        """Describe the registered plugins."""
        return [self._info(name, plugin) for name, plugin in self.pm.list_name_plugin() if plugin]

    def report(self, event: Progress) -> None:
        """Tell every observer of a step of a long job; one that raises is named and left out."""
        for _ in self._answers("sane_progress", {"event": event}):
            pass

    # Calling

    def _load(self, point: EntryPoint) -> None:
        # A plugin's import may raise anything, or exit, and must not end the host.
        try:
            self._register(point)
        except (Exception, SystemExit) as error:
            self._left_out(point.name, error)

    def _register(self, point: EntryPoint) -> None:
        name = point.name
        if self.pm.has_plugin(name):
            first = self._distributions.get(name, ("another", ""))[0]
            raise PluginError(
                f"plugin {name} of {distribution(point)}",
                f"{first} has a plugin of that name too",
                "a name is given once",
                "rename the entry point, or uninstall one of them",
            )
        plugin = point.load()
        required = getattr(plugin, "SANE_REQUIRES", (1, 0))
        if tuple(required) > hooks.HOOKSPEC_VERSION:
            raise PluginError(
                f"plugin {name}",
                f"it requires hooks {required}",
                f"this version has {hooks.HOOKSPEC_VERSION}",
                "upgrade sane-plugins",
            )
        try:
            self.pm.register(plugin, name=name)
        except Exception:  # older releases of pluggy leave the plugin half registered
            if self.pm.has_plugin(name):
                self.pm.unregister(name=name)
            raise
        if point.dist is not None:
            self._distributions[name] = (point.dist.name, point.dist.version)

    def _left_out(self, plugin: str, error: BaseException) -> Problem:
        told = str(error) if isinstance(error, SaneError) else f"{type(error).__name__}: {error}"
        problem = Problem(plugin, told.strip().partition("\n")[0], error)
        if os.environ.get("SANE_PLUGINS_STRICT", "") not in ("", "0"):
            raise PluginError(
                f"plugin {plugin}",
                f"it failed ({problem.error})",
                "SANE_PLUGINS_STRICT allows no failure",
                "repair or disable it",
            ) from error
        if problem not in self.problems:
            self.problems.append(problem)
        return problem

    def _first(self, hook: str, **arguments: Any) -> Any:
        """Return the first answer. Raises `PluginError` where none came and a plugin failed.

        Where a plugin wraps the hook, pluggy makes the call: only it knows how to nest wrappers.
        """
        everyone = getattr(self.pm.hook, hook).get_hookimpls()
        if any(map(wraps, everyone)):
            try:
                return getattr(self.pm.hook, hook)(**arguments)
            except SaneError:
                raise
            except Exception as error:
                raise raised(self._left_out(culprit(error, everyone), error), hook) from error
        failed: list[Problem] = []
        for _, answer in self._answers(hook, arguments, (SaneError,), failed=failed):
            return answer
        if failed:
            raise raised(failed[0], hook) from failed[0].cause
        return None

    def _required(self, hook: str, **arguments: Any) -> Any:
        token = _active.set(self)
        try:
            with reporting(self.report):
                answer = self._first(hook, **arguments)
        finally:
            _active.reset(token)
        if answer is None:
            way_out = "see 'sane-plugins list'"
            raise PluginError(hook, "no plugin answered", "one is needed", way_out)
        return answer

    def _answers(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        passed: tuple[type[Exception], ...] = (),
        read: Callable[[Any], Any] = lambda answer: answer,
        failed: list[Problem] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield (plugin, answer) in calling order, one by one: the others must survive one that raises."""
        for implementation in reversed(getattr(self.pm.hook, hook).get_hookimpls()):
            if wraps(implementation):
                continue
            try:
                wanted = {name: arguments[name] for name in implementation.argnames}
                answer = implementation.function(**wanted)
                answer = answer if answer is None else read(answer)
            except passed:
                raise
            except Exception as error:
                problem = self._left_out(implementation.plugin_name, error)
                if failed is not None:
                    failed.append(problem)
                continue
            if answer is not None:
                yield implementation.plugin_name, answer

    def _collected(self, hook: str, read: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        givers: dict[str, str] = {}
        for plugin, offered in self._answers(hook, {}, read=read or mapping):
            for name, value in offered.items():
                if name in found:
                    raise PluginError(
                        f"'{name}'",
                        f"both {givers[name]} and {plugin} offer it in {hook}",
                        "a name is given once",
                        "disable one with SANE_PLUGINS_DISABLE",
                    )
                found[name], givers[name] = value, plugin
        return found

    def _info(self, name: str, plugin: Any) -> PluginInfo:
        distribution, version = self._distributions.get(name, ("", ""))
        callers = self.pm.get_hookcallers(plugin) or []
        names = tuple(sorted(caller.name for caller in callers))
        return PluginInfo(name=name, distribution=distribution, version=version, hooks=names)


def open(source: Any) -> WeightGraph:
    """Read a network with the installed plugins; see `Host.open`."""
    return Host.installed().open(source)


_active: ContextVar[Host | None] = ContextVar("host", default=None)


def _short(source: Any) -> str:
    """Name a source in an error without printing its tensors."""
    return str(source) if isinstance(source, str | Path | ModuleType) else type(source).__name__
