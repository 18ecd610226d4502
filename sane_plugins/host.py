"""The plugins of one manager, and what can be done with them.

Light at import: what a plugin needs, it imports when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib.metadata import EntryPoint
from inspect import signature
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from pluggy import PluginManager

from sane_plugins import hooks
from sane_plugins.architectures import FULL_TRUST, is_bare_name, without_options
from sane_plugins.arguments import find_offer, require_type
from sane_plugins.errors import PluginError, SaneError, SourceError, UsageError
from sane_plugins.plugins import (
    AnswerError,
    HookCalls,
    PluginNote,
    Problem,
    Record,
    Reply,
    describe_oddities,
    disable_line,
    disabled_names,
    distribution_name,
    distribution_version,
    failure_of,
    how_to_enable,
    installed_points,
    is_enabled,
    is_ours,
    load_point,
    make_for_host,
    own_extras,
    parse_name_list,
    pick_arguments,
    plugin_names,
    require_arguments,
    require_supported,
    to_plugin_error,
)
from sane_plugins.progress import Progress, silent

if TYPE_CHECKING:
    import click
    from torch import nn

    from sane_plugins.cost import CostOptions, NetworkCost
    from sane_plugins.engines import Engine, Lost, Work
    from sane_plugins.features import EncodeOptions, Encoder, Encoding
    from sane_plugins.generation import Prompts, Sampler
    from sane_plugins.grafting import PromptNetwork, PromptOffer, PublishedNetwork, TransferMethod
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.properties import AnyEstimate, AnyHead, PredictOptions
    from sane_plugins.recognition import Recognizer
    from sane_plugins.tasks import Task
    from sane_plugins.weights import WeightGraph

SaneErrorT = TypeVar("SaneErrorT", bound=SaneError)
PROJECT = "sane_plugins"
_TOLD_NAMES = 3
_IMPORT_LATE = "import libraries late, inside the hooks, after they declined"
_HOOKS = frozenset(name for name in vars(hooks) if name.startswith("sane_"))


@dataclass(frozen=True, kw_only=True)
class DisabledPlugin:
    """One that is installed and kept from loading: where it came from, and what lets it load, as a clause."""

    name: str
    distribution: str
    version: str
    to_enable: str


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One registered plugin: its name, where it came from, and the hooks it implements."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]


class Host:
    """The plugins of one manager. `problems` lists the plugins and answers that were left out."""

    def __init__(self, pm: PluginManager) -> None:
        self.pm = pm
        self._record = Record()
        self._points: dict[str, EntryPoint] = {}
        self._to_enable: dict[str, str] = {}
        self._distributions: dict[str, tuple[str, str]] = {}
        self._own: set[str] = set()
        self.load_seconds: dict[str, float] = {}  # what the import of each plugin took
        self._calls = HookCalls(pm, self._record, self._own, self._plain_name)
        # Names that `open` and `build` are called with are the caller's own: all may be built.
        self.trust = FULL_TRUST

    def __repr__(self) -> str:
        return f"Host({self.pm.project_name!r}, plugins={len(self.plugins())}, problems={len(self.problems)})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "Host: it holds the plugins of one process and cannot be pickled; make another one there with"
            " Host.installed()"
        )

    @property
    def problems(self) -> list[Problem]:
        """Return the plugins, and their answers, that were left out: one row for each plugin and place."""
        return self._record.problems

    @property
    def notes(self) -> list[PluginNote]:
        """Return what authors of plugins should know: hooks that are never called, and what is slow."""
        return self._record.notes

    @classmethod
    def installed(cls) -> Host:
        """Load every installed plugin, one by one; a broken one is recorded and left out.

        SANE_PLUGINS_LOAD=a,b loads only these, SANE_PLUGINS_DISABLE=a,b all but these (names of entry points
        or distributions); 'sane-plugins plugins disable' keeps one from loading for good, unless
        SANE_PLUGINS_LOAD names it. SANE_PLUGINS_STRICT=1 raises `PluginError` instead of leaving one out.
        """
        pm = PluginManager(PROJECT)
        pm.add_hookspecs(hooks)
        host = cls(pm)
        host.load_installed()
        return host

    def load_installed(self, allowed: Callable[[EntryPoint], bool] | None = None) -> None:
        """Register every installed plugin that is `allowed`: by default, as `installed` says."""
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
        for topic, text in describe_oddities(made, _HOOKS):
            self._record.note(name, text, topic)

    # Reading and writing networks

    def open(self, source: Any) -> WeightGraph:
        """Read a network. Raises `SourceError` where no plugin knows the source."""
        graph: WeightGraph | None = self._first_answer("sane_open", source=source)
        if graph is not None:
            return graph
        from sane_plugins.formats import exists

        is_file = isinstance(source, str | Path) and exists(source)
        error = SourceError(
            _source_name(source),
            "no plugin reads this file" if is_file else "no plugin knows it",
            "a module, a state dict, a file or a name such as torchvision:resnet18 is needed",
            "check the name and its suffix, or see 'sane-plugins list'",
        )
        raise self.or_disabled(error.as_unknown())

    def build(self, source: Any, classes: int | None = None) -> nn.Module:
        """Build a runnable module. Raises `SourceError` where no plugin can."""
        module: nn.Module | None = self._first_answer("sane_build", source=source, classes=classes)
        if module is None:
            raise self.or_disabled(_unknown_network(source).as_unknown())
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
        Raises `UsageError` where a file is in the way without `force`, and where the graph is read from it.
        """
        from sane_plugins.weights import WeightGraph

        require_type("save, graph", graph, WeightGraph, way_out="read one with host.open()")
        require_type("save, target", target, str, Path)
        from sane_plugins.atomic_files import write_all

        self._require_outputs(graph, target, like, force)
        target = Path(target)
        arguments = {"graph": graph, "target": target, "metadata": metadata, "like": like}
        writer, path = self._calls.first("sane_save", arguments)
        if path is None:
            raise _unknown_suffix(target)
        taken = pick_arguments(writer, arguments) if writer else {}  # none: a wrapper wrote it
        if metadata is not None and "metadata" not in taken:
            from sane_plugins.formats import sidecar_writes

            write_all(sidecar_writes(Path(path), metadata))
        return Path(path)

    def check_save(
        self, graph: WeightGraph, target: str | Path, *, like: Any = None, force: bool = False
    ) -> None:
        """Raise what `save` would raise for such a network, before the work; nothing is written."""
        self._require_outputs(graph, target, like, force)
        target = Path(target)
        if self._first_answer("sane_check_save", graph=graph, target=target, like=like) is not None:
            return
        savers, checkers = (
            {x.plugin_name for x in self._calls.implementations(hook)}
            for hook in ("sane_save", "sane_check_save")
        )
        if savers <= checkers:  # a plugin without a check may still save it
            raise _unknown_suffix(target)

    def planned_files(self, target: str | Path) -> list[str | Path]:
        """Return the files that saving may write: the target, and those that its form has beside it."""
        from sane_plugins.formats import sidecar

        path = Path(target)
        beside = self._first_answer("sane_side_files", target=path)
        writers = self._calls.implementations("sane_save")
        takes_metadata = (bool(pick_arguments(x, {"metadata": None})) for x in writers)
        if beside is None or not all(takes_metadata):
            beside = [*(beside or ()), sidecar(path)]  # the host writes it
        return [target, *dict.fromkeys(map(Path, beside))]

    def _require_outputs(
        self, graph: WeightGraph, target: str | Path, like: Any, force: bool
    ) -> None:
        from sane_plugins.atomic_files import require_outputs
        from sane_plugins.formats import files_read

        sources = [*files_read(graph), *([like] if isinstance(like, str | Path) else [])]
        require_outputs(self.planned_files(target), force=force, sources=sources)

    # Abilities

    def encode(self, source: Any, options: EncodeOptions | None = None) -> Encoding:
        """Encode a network."""
        encoding: Encoding = self._required_answer("sane_encode", source=source, options=options)
        return encoding

    def encode_many(
        self,
        sources: Sequence[Any],
        options: EncodeOptions | None = None,
        *,
        engine: str = "local",
        workers: int = 0,
    ) -> Iterator[Encoding | SaneError]:
        """Encode networks; yield the encoding of each, or its error, in their order.

        Without workers it is done in this process. Workers are those of an engine: they have the plugins that
        are installed, sources are sent to them, and networks that took too much memory or ended their worker
        are done again, at last alone. Raises `UsageError` for an engine that no plugin offers.
        """
        from sane_plugins.engines import Lost, run_in_order

        if workers < 1:
            yield from map(partial(_encode_or_error, self, options), sources)
            return
        outcomes = run_in_order(self.engine(engine), _StartEncoding(options), sources, workers)
        for source, outcome in zip(sources, outcomes, strict=True):
            yield _lost(source, outcome) if isinstance(outcome, Lost) else outcome

    def predict(
        self, source: Any, options: PredictOptions | None = None
    ) -> Mapping[str, AnyEstimate]:
        """Predict a network's properties from its weights."""
        estimates: Mapping[str, AnyEstimate] = self._required_answer(
            "sane_predict_properties", source=source, options=options
        )
        return estimates

    def cost(self, source: Any, options: CostOptions | None = None) -> NetworkCost:
        """Count what running a network takes: a name, a module, or a file of a known architecture."""
        cost: NetworkCost = self._required_answer("sane_cost", source=source, options=options)
        return cost

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

    def prompt_network(self, source: Any) -> PromptNetwork:
        """Read a prompt network: an offer or its name, or anything that `open` reads.

        It can run (`build`) where it is a module, a name that is built, or of a known architecture. Raises
        `SourceError`, and `PluginError` where what a plugin offers is broken.
        """
        from sane_plugins.formats import exists
        from sane_plugins.grafting import PromptOffer
        from sane_plugins.prompts import PromptReader

        if isinstance(source, str) and not exists(source):
            source = self.prompts().get(source, source)
        if not isinstance(source, PromptOffer):
            return PromptReader(self.open, self.recognizer, published=self.published_networks())(
                source
            )
        loaded, problem = self.use("sane_prompts", source, source.load, raised=(SaneError,))
        if problem is not None:
            raise to_plugin_error(problem) from problem.cause
        return replace(self.prompt_network(loaded), info=source.info)

    # What plugins offer

    def encoders(self) -> dict[str, Encoder]:
        """Return all encoders by name."""
        return self._collect("sane_encoders")

    def samplers(self) -> dict[str, Sampler]:
        """Return all samplers by name."""
        return self._collect("sane_samplers")

    def transfers(self) -> dict[str, TransferMethod]:
        """Return all ways to move weights into another architecture, by name."""
        return self._collect("sane_transfers")

    def property_heads(self) -> dict[str, AnyHead]:
        """Return all property heads by name."""
        return self._collect("sane_property_heads")

    def engines(self) -> dict[str, Engine]:
        """Return all engines by name."""
        return self._collect("sane_engines")

    def engine(self, name: str) -> Engine:
        """Return an engine by name. Raises `UsageError` where no plugin offers it."""
        install = f"run pip install 'sane-plugins[{name}]'" if name in own_extras() else ""
        try:
            return find_offer("engine", name, self.engines(), install)
        except UsageError as error:
            raise self.or_disabled(error) from None

    def default_prompts(self, target: nn.Module, task: Task) -> Prompts:
        """Return the prompts for a network and a task where none are named.

        They are ours that fit it, which are not transferred, or else those of what plugins offer that are
        most alike (`choose_offers`), or else ours.
        """
        from sane_plugins.generation import Prompts, choose_prompts, embedded_prompts
        from sane_plugins.prompts import choose_offers, class_notes

        chosen = choose_prompts(target, embedded_prompts())
        ours = [p.shape for p in chosen.graphs[0].params]
        theirs = [tuple(x.shape) for x in target.state_dict().values() if x.is_floating_point()]
        # All but the classifier's weight and bias are alike.
        if len(ours) == len(theirs) and ours[:-2] == theirs[:-2]:
            return replace(chosen, networks=tuple(replace(x, build=None) for x in chosen.networks))
        offered = choose_offers(self.prompts(), self.prompt_network, target, task)
        if not offered.networks:
            return replace(chosen, notes=(*offered.notes, *chosen.notes))
        told = class_notes([network.info for network in offered.networks], task.classes)
        return Prompts(offered.networks, (*offered.notes, *told))

    def prompts(self) -> dict[str, PromptOffer]:
        """Return all prompt networks that plugins offer, by name; none is read."""
        return self._collect("sane_prompts")

    def published_networks(self) -> dict[str, PublishedNetwork]:
        """Return the published networks that plugins know, by name; none is built."""
        return self._collect("sane_published_networks")

    def build_published(self, name: str, classes: int | None = None) -> nn.Module | None:
        """Build a network that a plugin knows by that name; None where none does.

        Raises `PluginError` where what the plugin gave is broken.
        """
        network = self.published_networks().get(name)
        if network is None:
            return None
        module: nn.Module | None
        build = partial(network.build, classes)
        module, problem = self.use("sane_published_networks", network, build, raised=(SaneError,))
        if problem is not None:
            raise to_plugin_error(problem) from problem.cause
        return module

    @cached_property
    def recognizer(self) -> Recognizer:
        """Return what recognises files as networks that this host builds."""
        from sane_plugins.recognition import NamedBuilder, Recognizer

        @cache
        def builder(name: str) -> NamedBuilder:
            return NamedBuilder(name, partial(self.build, name))

        def published(tensors: int) -> list[NamedBuilder]:
            networks = self.published_networks().items()
            return [builder(name) for name, x in networks if x.tensors in (None, tensors)]

        return Recognizer(self.build, published)

    def commands(self, taken: Collection[str] = ()) -> list[click.Command]:
        """Return the commands that plugins add, apart from those whose names are taken."""
        offers = self._calls.offers("sane_commands")
        for name in sorted(offers.keys() & set(taken)):
            error = AnswerError("it is the name of one of ours")
            self._record.leave_out(offers[name].plugin, error, f"command '{name}'")
        return [offer.value for name, offer in offers.items() if name not in taken]

    def plugins(self) -> list[PluginInfo]:
        """Describe the registered plugins."""
        named = self.pm.list_name_plugin()
        return [self._info(name) for name, plugin in named if plugin is not None]

    def report(self, event: Progress) -> None:
        """Pass a step of a long job to every observer; one that raises is recorded and not asked again."""
        self._calls.observe(event)

    def replies(self, hook: str, **arguments: Any) -> Iterator[Reply]:
        """Ask each plugin on its own, whatever the others answer: for finding out which does what."""
        return self._calls.replies(hook, arguments)

    @property
    def disabled(self) -> list[str]:
        """Return the plugins that are installed and kept from loading."""
        return sorted(filter(self.is_off, self._points))

    def disabled_plugins(self) -> list[DisabledPlugin]:
        """Describe the plugins that are installed and kept from loading."""
        return [
            DisabledPlugin(
                name=name,
                distribution=distribution_name(self._points[name]),
                version=distribution_version(self._points[name]),
                to_enable=self._to_enable.get(name) or "let this program load it",
            )
            for name in self.disabled
        ]

    def or_disabled(self, error: SaneErrorT) -> SaneErrorT:
        """Return an error of what nobody knows, with the plugins that are kept from loading as a way out."""
        disabled = [name for name in self.disabled if self._to_enable.get(name)]
        if not error.is_unknown or not disabled:
            return error
        names, more = ", ".join(disabled[:_TOLD_NAMES]), len(disabled) - _TOLD_NAMES
        ways = {self._to_enable[name] for name in disabled}
        way = ways.pop() if len(ways) == 1 else "'sane-plugins list' says how"
        which = f"one of {names}" if len(disabled) > 1 else names
        which += f" and {more} more" if more > 0 else ""
        hint = f"or enable what is disabled and may know it, {which}: {way}"
        return error if hint in error.way_out else error.with_way_out(hint)

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

    def use(
        self,
        hook: str,
        offered: Any,
        call: Callable[[], Any],
        *,
        device: str = "cpu",
        raised: tuple[type[Exception], ...] = (),
    ) -> tuple[Any, Problem | None]:
        """Use what a plugin offered; return the checked result and None, or None and the problem.

        `raised` are errors that are not the plugin's fault. `device` is that of the results.
        """
        return self._calls.use(hook, offered, call, device=device, raised=raised)

    def blame(self, hook: str, offered: Any, error: BaseException) -> Problem:
        """Record that what a plugin offered in answer to a hook failed when it was used."""
        return self._calls.blame(hook, offered, error)

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
            require_supported(plugin, name, hooks.HOOKSPEC_VERSION)
            self.register(plugin, name)
        finally:
            self.load_seconds[name] = perf_counter() - started
            self._record.note_if_slow(name, "its import", self.load_seconds[name], _IMPORT_LATE)
        self._distributions[key] = distribution_name(point), distribution_version(point)

    def _arguments_of(self, hook: str) -> Sequence[str] | None:
        """Return the arguments of a hook, of ours and of this manager's; None where nobody specifies it."""
        caller = getattr(self.pm.hook, hook, None)
        theirs = caller.spec.argnames if caller is not None and caller.spec is not None else None
        if hook not in _HOOKS:
            return theirs
        return [*dict.fromkeys((*signature(vars(hooks)[hook]).parameters, *(theirs or ())))]

    # Answers

    def _first_answer(self, hook: str, **arguments: Any) -> Any:
        """Return the first answer, or None. Raises `PluginError` if there is none and a plugin failed."""
        try:
            return self._calls.first(hook, arguments)[1]
        except SaneError as error:
            told = self.or_disabled(error)
            if told is error:
                raise
            raise told from error

    def _required_answer(self, hook: str, **arguments: Any) -> Any:
        answer = self._first_answer(hook, **arguments)
        if answer is None:
            way_out = "see 'sane-plugins list'"
            raise PluginError(hook, "no plugin answered", "one is needed", way_out)
        return answer

    def _collect(self, hook: str) -> dict[str, Any]:
        return {name: offer.value for name, offer in self._calls.offers(hook).items()}

    def _info(self, name: str) -> PluginInfo:
        distribution, version = self._distributions.get(name, ("", ""))
        implemented = tuple(
            hook
            for hook, caller in sorted(vars(self.pm.hook).items())
            if caller.has_spec() and any(x.plugin_name == name for x in caller.get_hookimpls())
        )
        return PluginInfo(name=name, distribution=distribution, version=version, hooks=implemented)


def open(source: Any) -> WeightGraph:
    """Read a network with the installed plugins; see `Host.open`."""
    return Host.installed().open(source)


@dataclass(frozen=True)
class _StartEncoding:
    """How a worker of an engine begins to encode."""

    options: EncodeOptions | None

    def __call__(self) -> Work:
        from sane_plugins.runtime import set_threads

        set_threads(1)  # workers share the processors
        options = None if self.options is None else replace(self.options, report=silent)
        return partial(_encode_or_error, Host.installed(), options)


def _encode_or_error(
    host: Host, options: EncodeOptions | None, source: Any
) -> Encoding | SaneError:
    from sane_plugins.engines import is_out_of_memory

    try:
        return host.encode(source, options)
    except UsageError:
        raise
    except SaneError as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        return error


def _lost(source: Any, outcome: Lost) -> SourceError:
    return SourceError(
        _source_name(source),
        "it takes more memory than there is"
        if outcome.out_of_memory
        else "its worker ended every time, at last alone",
        "a network that can be encoded here is needed",
        "leave it out, or take a larger machine",
    )


def _unknown_network(source: Any) -> SourceError:
    """Return the error for what no plugin builds; of a name alone, with the library or names like it."""
    if is_bare_name(source):
        from sane_plugins.recognition import close_names, library_sources

        name = without_options(source)
        library = next(iter(library_sources(name)), "").partition(":")[0]
        close = close_names(name)
        if library:
            found, needed = "no plugin that is loaded builds it", f"it is a network of {library}"
            way_out = f"run pip install 'sane-plugins[{library}]'"
        else:
            found, needed = "there is no such network", "a name of torchvision or timm is needed"
            way_out = f"did you mean {' or '.join(close)}" if close else "check the name"
        return SourceError(source, found, needed, way_out)
    return SourceError(
        _source_name(source),
        "no plugin builds a runnable network from it",
        "a name such as torchvision:resnet18 or package.module:function is needed",
        "check the name, or see 'sane-plugins list'",
    )


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
