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
    by_name,
    culprit,
    distribution,
    listed,
    made_for,
    mapping,
    names,
    raised,
    wanted,
    wraps,
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
    """The plugins of one manager. `problems` names those that were left out."""

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
        """Load every installed plugin, one by one; a broken one is named and left out.

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
            entry_points(group=PROJECT), key=lambda x: distribution(x) != "sane-plugins"
        )
        self._names |= {point.name for point in points}
        for point in filter(wanted, points):
            self._load(point)
        known: set[str] = set().union(*map(names, points))
        for name in sorted(listed(os.environ.get("SANE_PLUGINS_LOAD", "")) - known):
            self._left_out(name, LookupError("SANE_PLUGINS_LOAD names it, and nobody installed it"))

    def register(self, plugin: Any, name: str) -> None:
        """Register a plugin, or what its `sane_plugin(host)` returns. Raises what pluggy raises."""
        key = self._key(name)
        was_there = self.pm.has_plugin(key)
        try:
            self._add(made_for(self, plugin), name)
        except Exception:  # older releases of pluggy leave the plugin half registered
            if not was_there and self.pm.has_plugin(key):
                self.pm.unregister(name=key)
            raise

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
        given = {"graph": graph, "target": target, "metadata": metadata, "like": like}
        writer, path = self._call("sane_save", given)
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
        if self._first("sane_check_save", graph=graph, target=target, like=like) is not None:
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

    def is_off(self, name: str) -> bool:
        """Tell whether a plugin of that name is installed but disabled, blocked or unregistered."""
        broken = {problem.plugin for problem in self.problems}
        here = any(map(self.pm.has_plugin, (name, self._key(name))))
        return name in self._names and not here and name not in broken

    # Loading

    def _key(self, name: str) -> str:
        """Return the name that a plugin has in the manager."""
        return name

    def _add(self, plugin: Any, name: str) -> None:
        self.pm.register(plugin, name=self._key(name))

    def _load(self, point: EntryPoint) -> None:
        # A plugin's import may raise anything, or exit, and must not end the host.
        try:
            self._register(point)
        except (Exception, SystemExit) as error:
            self._left_out(point.name, error)

    def _register(self, point: EntryPoint) -> None:
        name, key = point.name, self._key(point.name)
        if self.pm.is_blocked(key):
            return
        if self.pm.has_plugin(key):
            first = self._distributions.get(key, ("another", ""))[0]
            raise PluginError(
                f"plugin {name} of {distribution(point)}",
                f"{first} has a plugin of that name too",
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

    # Calling

    def _implementations(self, hook: str) -> list[HookImpl]:
        """Return what answers a hook, in calling order."""
        everyone = getattr(self.pm.hook, hook).get_hookimpls()
        return [x for x in reversed(everyone) if not wraps(x)]

    def _first(self, hook: str, **arguments: Any) -> Any:
        """Return the first answer, or None. Raises `PluginError` where none came and a plugin failed."""
        return self._call(hook, arguments)[1]

    def _call(self, hook: str, arguments: Mapping[str, Any]) -> tuple[HookImpl | None, Any]:
        """Return who answered first, if that is known, and the answer.

        Where a plugin wraps the hook, pluggy makes the call: only it knows how to nest wrappers.
        """
        everyone = getattr(self.pm.hook, hook).get_hookimpls()
        if any(map(wraps, everyone)):
            try:
                return None, getattr(self.pm.hook, hook)(**arguments)
            except SaneError:
                raise
            except Exception as error:
                raise raised(self._left_out(culprit(error, everyone), error), hook) from error
        failed: list[Problem] = []
        for answered in self._answers(hook, arguments, (SaneError,), failed=failed):
            return answered
        if failed:
            raise raised(failed[0], hook) from failed[0].cause
        return None, None

    def _required(self, hook: str, **arguments: Any) -> Any:
        answer = self._first(hook, **arguments)
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
    ) -> Iterator[tuple[HookImpl, Any]]:
        """Yield (who, answer) in calling order, one by one: the others must survive one that raises."""
        for implementation in self._implementations(hook):
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
                yield implementation, answer

    def _collected(self, hook: str, read: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        givers: dict[str, str] = {}
        for implementation, offered in self._answers(hook, {}, read=read or mapping):
            plugin = implementation.plugin_name
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


def _unknown_suffix(target: Path) -> UsageError:
    return UsageError(
        target,
        f"no plugin writes '{target.suffix}' files",
        "a known suffix is needed",
        "write .safetensors, .pt, or the form that the network came in",
    )


def _short(source: Any) -> str:
    """Name a source in an error without printing its tensors."""
    return str(source) if isinstance(source, str | Path | ModuleType) else type(source).__name__
