"""The plugins of one manager, and what can be done with them.

Light at import: what a plugin needs, it imports when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pluggy import PluginManager

from sane_plugins import hooks
from sane_plugins.arguments import require_type
from sane_plugins.errors import PluginError, SaneError, SourceError, UsageError
from sane_plugins.plugins import (
    Problem,
    commands_by_name,
    distribution_name,
    find_failing_plugin,
    is_enabled,
    is_wrapper,
    make_for_host,
    parse_name_list,
    plugin_names,
    require_mapping,
    to_plugin_error,
)
from sane_plugins.progress import Progress

if TYPE_CHECKING:
    import click
    from pluggy import HookImpl
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
    """The plugins of one manager. `problems` lists the plugins that were left out."""

    def __init__(self, pm: PluginManager) -> None:
        self.pm = pm
        self.problems: list[Problem] = []
        self._names: set[str] = set()
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
        """Load every installed plugin, one by one; a broken one is recorded and left out.

        SANE_PLUGINS_LOAD=a,b loads only these, SANE_PLUGINS_DISABLE=a,b all but these (names of entry points
        or distributions); SANE_PLUGINS_STRICT=1 raises `PluginError` instead of leaving one out.
        """
        pm = PluginManager(PROJECT)
        pm.add_hookspecs(hooks)
        host = cls(pm)
        host.load_installed()
        return host

    def load_installed(self) -> None:
        """Register every installed plugin that the environment allows; see `installed`."""
        # Ours first: no other distribution can take our names, and all others are asked before us.
        points = sorted(
            entry_points(group=PROJECT),
            key=lambda point: distribution_name(point) != "sane-plugins",
        )
        self._names |= {point.name for point in points}
        for point in filter(is_enabled, points):
            self._load_or_record(point)
        installed_names: set[str] = set().union(*map(plugin_names, points))
        for name in sorted(
            parse_name_list(os.environ.get("SANE_PLUGINS_LOAD", "")) - installed_names
        ):
            self._record_problem(
                name, LookupError("SANE_PLUGINS_LOAD names it, and nobody installed it")
            )

    def register(self, plugin: Any, name: str) -> None:
        """Register a plugin, or what its `sane_plugin(host)` returns. Raises what pluggy raises."""
        key = self._registered_name(name)
        was_registered = self.pm.has_plugin(key)
        try:
            self._add_to_manager(make_for_host(self, plugin), name)
        except Exception:  # older releases of pluggy leave the plugin half registered
            if not was_registered and self.pm.has_plugin(key):
                self.pm.unregister(name=key)
            raise

    # Reading and writing networks

    def open(self, source: Any) -> WeightGraph:
        """Read a network. Raises `SourceError` where no plugin knows the source."""
        graph: WeightGraph | None = self._first_answer("sane_open", source=source)
        if graph is not None:
            return graph
        exists = isinstance(source, str | Path) and Path(source).exists()
        raise SourceError(
            _source_name(source),
            "no plugin reads this file" if exists else "no plugin knows it",
            "a module, a state dict, a file or a name such as torchvision:resnet18 is needed",
            "check the name and its suffix, or see 'sane-plugins list'",
        )

    def build(self, source: Any, classes: int | None = None) -> nn.Module:
        """Build a runnable module. Raises `SourceError` where no plugin can."""
        module: nn.Module | None = self._first_answer("sane_build", source=source, classes=classes)
        if module is None:
            raise SourceError(
                _source_name(source),
                "no plugin builds a runnable network from it",
                "a name such as torchvision:resnet18 or package.module:function is needed",
                "check the name, or see 'sane-plugins list'",
            )
        return module

    def save(
        self,
        graph: WeightGraph,
        target: str | Path,
        *,
        metadata: Mapping[str, Any] | None = None,
        like: Any = None,
        force: bool = False,
    ) -> Path:
        """Write a network in the form that the target's suffix asks for; each file is written once.

        `metadata`, plain data of JSON, go into the file where its form has room, else into
        `<target>.provenance.json`. `like` is a source whose form is kept, such as an ONNX file's nodes.
        """
        from sane_plugins.weights import WeightGraph

        require_type("save, graph", graph, WeightGraph, way_out="read one with host.open()")
        require_type("save, target", target, str, Path)
        from sane_plugins.atomic_files import require_free, write_all

        target = require_free(Path(target), force)
        path: Path | None
        arguments = {"graph": graph, "target": target, "metadata": metadata, "like": like}
        writer, path = self._call_first("sane_save", arguments)
        if path is None:
            raise _unknown_suffix(target)
        writers = [writer] if writer else self._implementations("sane_save")
        if metadata is not None and not all("metadata" in x.argnames for x in writers):
            from sane_plugins.formats import sidecar_writes

            write_all(sidecar_writes(path, metadata))
        return path

    def check_save(
        self, graph: WeightGraph, target: str | Path, *, like: Any = None, force: bool = False
    ) -> None:
        """Raise what `save` would raise for such a network, before the work; nothing is written."""
        from sane_plugins.atomic_files import require_free, require_writable

        target = require_writable(require_free(Path(target), force))
        if self._first_answer("sane_check_save", graph=graph, target=target, like=like) is not None:
            return
        savers, checkers = (
            {x.plugin_name for x in self._implementations(hook)}
            for hook in ("sane_save", "sane_check_save")
        )
        if savers <= checkers:  # a plugin without a check may still save it
            raise _unknown_suffix(target)

    # Abilities

    def encode(self, source: Any, options: EncodeOptions | None = None) -> Encoding:
        """Encode a network."""
        encoding: Encoding = self._required_answer("sane_encode", source=source, options=options)
        return encoding

    def predict(
        self, source: Any, options: PredictOptions | None = None
    ) -> Mapping[str, AnyEstimate]:
        """Predict a network's properties from its weights."""
        estimates: Mapping[str, AnyEstimate] = self._required_answer(
            "sane_predict_properties", source=source, options=options
        )
        return estimates

    def initialize(
        self,
        target: Any,
        task: Task,
        prompts: Sequence[Any] = (),
        options: InitializeOptions | None = None,
    ) -> Initialization:
        """Initialise a module, or what a function builds, for a task; without prompts, from ours."""
        initialization: Initialization = self._required_answer(
            "sane_initialize", target=target, task=task, prompts=prompts, options=options
        )
        return initialization

    # What plugins offer

    def encoders(self) -> dict[str, Encoder]:
        """Return all encoders by name."""
        return self._collect("sane_encoders")

    def samplers(self) -> dict[str, Sampler]:
        """Return all samplers by name."""
        return self._collect("sane_samplers")

    def property_heads(self) -> dict[str, AnyHead]:
        """Return all property heads by name."""
        return self._collect("sane_property_heads")

    def engines(self) -> dict[str, Any]:
        """Return all engines by name."""
        return self._collect("sane_engines")

    def commands(self) -> list[click.Command]:
        """Return the commands that plugins add."""
        return list(self._collect("sane_commands", commands_by_name).values())

    def plugins(self) -> list[PluginInfo]:
        """Describe the registered plugins."""
        return [self._info(name, plugin) for name, plugin in self.pm.list_name_plugin() if plugin]

    def report(self, event: Progress) -> None:
        """Pass a step of a long job to every observer; one that raises is recorded and left out."""
        for _ in self._answers("sane_progress", {"event": event}):
            pass

    def is_off(self, name: str) -> bool:
        """Return whether a plugin of that name is installed but disabled, blocked or unregistered."""
        broken = {problem.plugin for problem in self.problems}
        is_registered = any(map(self.pm.has_plugin, (name, self._registered_name(name))))
        return name in self._names and not is_registered and name not in broken

    # Loading

    def _registered_name(self, name: str) -> str:
        """Return the name under which the manager registers a plugin."""
        return name

    def _add_to_manager(self, plugin: Any, name: str) -> None:
        self.pm.register(plugin, name=self._registered_name(name))

    def _load_or_record(self, point: EntryPoint) -> None:
        # A plugin's import may raise anything, or exit, and must not end the host.
        try:
            self._register(point)
        except (Exception, SystemExit) as error:
            self._record_problem(point.name, error)

    def _register(self, point: EntryPoint) -> None:
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
        plugin = point.load()
        required = getattr(plugin, "SANE_REQUIRES", (1, 0))
        if not isinstance(required, tuple | list) or [type(x) for x in required] != [int, int]:
            raise PluginError(
                f"plugin {name}",
                f"its SANE_REQUIRES is {required!r}",
                "two whole numbers are needed",
                f"write SANE_REQUIRES = {hooks.HOOKSPEC_VERSION}",
            )
        if tuple(required) > hooks.HOOKSPEC_VERSION:
            raise PluginError(
                f"plugin {name}",
                f"it requires hooks {required}",
                f"this version has {hooks.HOOKSPEC_VERSION}",
                "upgrade sane-plugins",
            )
        self.register(plugin, name)
        if point.dist is not None:
            self._distributions[key] = (point.dist.name, point.dist.version)

    def _record_problem(self, plugin: str, error: BaseException) -> Problem:
        message = str(error) if isinstance(error, SaneError) else f"{type(error).__name__}: {error}"
        problem = Problem(plugin, message.strip().partition("\n")[0], error)
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

    # Calling

    def _implementations(self, hook: str) -> list[HookImpl]:
        """Return the implementations of a hook that answer it, in calling order."""
        implementations = getattr(self.pm.hook, hook).get_hookimpls()
        return [x for x in reversed(implementations) if not is_wrapper(x)]

    def _first_answer(self, hook: str, **arguments: Any) -> Any:
        """Return the first answer, or None. Raises `PluginError` if there is none and a plugin failed."""
        return self._call_first(hook, arguments)[1]

    def _call_first(self, hook: str, arguments: Mapping[str, Any]) -> tuple[HookImpl | None, Any]:
        """Return the implementation that answered first, if that is known, and its answer.

        Where a plugin wraps the hook, pluggy makes the call: only it knows how to nest wrappers.
        """
        implementations = getattr(self.pm.hook, hook).get_hookimpls()
        if any(map(is_wrapper, implementations)):
            try:
                return None, getattr(self.pm.hook, hook)(**arguments)
            except SaneError:
                raise
            except Exception as error:
                raise to_plugin_error(
                    self._record_problem(find_failing_plugin(error, implementations), error), hook
                ) from error
        failures: list[Problem] = []
        for answer in self._answers(hook, arguments, (SaneError,), failures=failures):
            return answer
        if failures:
            raise to_plugin_error(failures[0], hook) from failures[0].cause
        return None, None

    def _required_answer(self, hook: str, **arguments: Any) -> Any:
        answer = self._first_answer(hook, **arguments)
        if answer is None:
            way_out = "see 'sane-plugins list'"
            raise PluginError(hook, "no plugin answered", "one is needed", way_out)
        return answer

    def _answers(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        reraised: tuple[type[Exception], ...] = (),
        convert: Callable[[Any], Any] = lambda answer: answer,
        failures: list[Problem] | None = None,
    ) -> Iterator[tuple[HookImpl, Any]]:
        """Yield (implementation, answer) in calling order; one that raises does not stop the others."""
        for implementation in self._implementations(hook):
            try:
                kwargs = {name: arguments[name] for name in implementation.argnames}
                answer = implementation.function(**kwargs)
                answer = answer if answer is None else convert(answer)
            except reraised:
                raise
            except Exception as error:
                problem = self._record_problem(implementation.plugin_name, error)
                if failures is not None:
                    failures.append(problem)
                continue
            if answer is not None:
                yield implementation, answer

    def _collect(self, hook: str, convert: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        collected: dict[str, Any] = {}
        providers: dict[str, str] = {}
        for implementation, answer in self._answers(hook, {}, convert=convert or require_mapping):
            plugin = implementation.plugin_name
            for name, value in answer.items():
                if name in collected:
                    raise PluginError(
                        f"'{name}'",
                        f"both {providers[name]} and {plugin} offer it in {hook}",
                        "a name is given once",
                        "disable one with SANE_PLUGINS_DISABLE",
                    )
                collected[name], providers[name] = value, plugin
        return collected

    def _info(self, name: str, plugin: Any) -> PluginInfo:
        distribution, version = self._distributions.get(name, ("", ""))
        callers = self.pm.get_hookcallers(plugin) or []
        names = tuple(sorted(caller.name for caller in callers))
        return PluginInfo(name=name, distribution=distribution, version=version, hooks=names)


def open(source: Any) -> WeightGraph:
    """Read a network with the installed plugins; see `Host.open`."""
    return Host.installed().open(source)


def _unknown_suffix(target: Path) -> UsageError:
    return UsageError(
        target,
        f"no plugin writes '{target.suffix}' files",
        "a known suffix is needed",
        "write .safetensors, .pt, or the form that the network came in",
    )


def _source_name(source: Any) -> str:
    """Name a source in an error without printing its tensors."""
    return str(source) if isinstance(source, str | Path | ModuleType) else type(source).__name__
