"""The plugins of one manager, and what can be done with them.

Light at import: what a plugin needs, it imports when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluggy import PluginManager

from sane_plugins import hooks
from sane_plugins.architectures import FULL_TRUST
from sane_plugins.arguments import find_offer, require_type
from sane_plugins.errors import PluginError, SaneError, UsageError
from sane_plugins.host.unknown_sources import unknown_network, unknown_source, unknown_suffix
from sane_plugins.plugins import (
    AnswerError,
    HookCalls,
    PluginRegistry,
    Problem,
    Reply,
    own_extras,
    pick_arguments,
    to_plugin_error,
)
from sane_plugins.progress import Progress

if TYPE_CHECKING:
    import click
    from torch import nn

    from sane_plugins.cost import CostOptions, NetworkCost
    from sane_plugins.engines import Engine
    from sane_plugins.features import EncodeOptions, Encoder, Encoding
    from sane_plugins.generation import Prompts, Sampler
    from sane_plugins.grafting import PromptNetwork, PromptOffer, PublishedNetwork, TransferMethod
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.properties import AnyEstimate, AnyHead, PredictOptions
    from sane_plugins.recognition import Recognizer
    from sane_plugins.tasks import Task
    from sane_plugins.weights import WeightGraph

PROJECT = "sane_plugins"


class Host(PluginRegistry):
    """The plugins of one manager. `problems` lists the plugins and answers that were left out."""

    def __init__(self, pm: PluginManager) -> None:
        super().__init__(pm, hooks)
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

    # Reading and writing networks

    def open(self, source: Any) -> WeightGraph:
        """Read a network. Raises `SourceError` where no plugin knows the source."""
        graph: WeightGraph | None = self._first_answer("sane_open", source=source)
        if graph is None:
            raise self.or_disabled(unknown_source(source).as_unknown())
        return graph

    def build(self, source: Any, classes: int | None = None) -> nn.Module:
        """Build a runnable module. Raises `SourceError` where no plugin can."""
        module: nn.Module | None = self._first_answer("sane_build", source=source, classes=classes)
        if module is None:
            raise self.or_disabled(unknown_network(source).as_unknown())
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
            raise unknown_suffix(target)
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
            raise unknown_suffix(target)

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
        from sane_plugins.host.encode_many import encode_each

        return encode_each(self, sources, options, engine, workers)

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
        from sane_plugins.generation import default_prompts

        return default_prompts(target, task, self.prompts, self.prompt_network)

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

    def report(self, event: Progress) -> None:
        """Pass a step of a long job to every observer; one that raises is recorded and not asked again."""
        self._calls.observe(event)

    def replies(self, hook: str, **arguments: Any) -> Iterator[Reply]:
        """Ask each plugin on its own, whatever the others answer: for finding out which does what."""
        return self._calls.replies(hook, arguments)

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


def open(source: Any) -> WeightGraph:
    """Read a network with the installed plugins; see `Host.open`."""
    return Host.installed().open(source)
