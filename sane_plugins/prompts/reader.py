"""Read prompt networks from what users name: files, folders, names of networks, modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sane_plugins.architectures import Size, build
from sane_plugins.formats import exists, files_read
from sane_plugins.grafting import PromptInfo, PromptNetwork, PublishedNetwork
from sane_plugins.prompts.card import PromptCard, read_card
from sane_plugins.prompts.declared import declared_info
from sane_plugins.prompts.runnable import network_of_builder, network_of_graph, network_of_module
from sane_plugins.recognition import NamedBuilder, Recognizer, fit_builder
from sane_plugins.weights import WeightGraph

# What a network that a card names may build beside what its file stores.
_SPARE = Size(values=2**20, tensors=2**7)


@dataclass(frozen=True)
class PromptReader:
    """Reads prompt networks: `open_source` reads a graph, `recognizer` says what a file's network is.

    A file is what one of the `builders` builds, where any are given. `published` are the networks that
    plugins know, by the names that the recognizer tells.
    """

    open_source: Callable[[Any], WeightGraph]
    recognizer: Recognizer
    builders: Sequence[NamedBuilder] = ()
    published: Mapping[str, PublishedNetwork] = field(default_factory=dict)

    def __call__(self, source: Any) -> PromptNetwork:
        """Read a prompt network of a module, a graph, a file or a name; one that is read stays as it is.

        Raises `SourceError` where nothing knows the source.
        """
        if isinstance(source, PromptNetwork):
            return source
        if isinstance(source, nn.Module):
            return network_of_module(source, PromptInfo(name=type(source).__name__))
        graph = self.open_source(source)
        is_file = isinstance(source, str | Path) and exists(source)
        told = _card(graph)
        card = told or PromptCard(info=_info(source, graph))
        info = replace(card.info, name=str(source)) if is_file else card.info
        for builder in self.builders:
            if fit := fit_builder(graph, builder):
                names, classes = fit
                return network_of_builder(graph, info, partial(builder.build, classes), names)
        if card.factory:
            # A card's factory is one of ours: nothing else may be named.
            most = Size(2 * graph.size + _SPARE.values, 2 * len(graph.tensors) + _SPARE.tensors)
            return network_of_builder(graph, info, partial(build, card.factory, most=most))
        if graph.container == "module" and isinstance(source, str) and not is_file:
            build_named = self.recognizer.build_named
            return network_of_builder(graph, info, partial(build_named, source, None))
        return network_of_graph(graph, info, self.recognizer, {} if told else self.published)


def _info(source: Any, graph: WeightGraph) -> PromptInfo:
    """Return what is known of a network that says nothing of itself."""
    name = str(source) if isinstance(source, str | Path) else graph.source
    path = Path(graph.source)
    is_read_from_file = exists(path) and path.is_file()
    return declared_info(name, path) if is_read_from_file else PromptInfo(name=name, source=name)


def _card(graph: WeightGraph) -> PromptCard | None:
    """Return what the file of a graph says of itself."""
    files = [Path(path) for path in files_read(graph) if exists(path) and Path(path).is_file()]
    return read_card(files[0]) if len(files) == 1 else None
