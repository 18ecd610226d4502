"""Make prompt networks of what is read: of a module, and of a file whose architecture is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.grafting import PromptInfo, PromptNetwork, PublishedNetwork
from sane_plugins.prompts.alternatives import info_of_published, notes_on_alternatives
from sane_plugins.recognition import (
    ArchitectureCandidate,
    Recognizer,
    build_on_meta,
)
from sane_plugins.runtime import drawing_from
from sane_plugins.weights import (
    WeightGraph,
    computes_tensors,
    copy_module,
    from_module,
    load_into,
    shape_text,
)

Builder = Callable[[], nn.Module]
Names = Mapping[str, str]
"""Names in a network, by those in a file."""


def network_of_module(module: nn.Module, info: PromptInfo) -> PromptNetwork:
    """Return a module as a prompt network; later changes of the module do not reach it."""
    own = copy_module(module).eval().requires_grad_(False)
    return PromptNetwork(
        graph=from_module(own, info.name), info=info, build=lambda: copy_module(own)
    )


def network_of_graph(
    graph: WeightGraph,
    info: PromptInfo,
    recognizer: Recognizer,
    published: Mapping[str, PublishedNetwork] | None = None,
) -> PromptNetwork:
    """Return a file's network; it can run where the recognizer knows its architecture.

    Of `published` networks, what the file does not say of itself is told too.
    """
    candidates = recognizer.likely_candidates(graph)

    def run_as(candidate: ArchitectureCandidate) -> PromptNetwork:
        build = partial(candidate.build_stored, recognizer.build_named)
        return network_of_builder(graph, info, build, candidate.names)

    for place, candidate in enumerate(candidates):
        try:  # the library may be missing, or of another version
            build_on_meta(partial(candidate.build_stored, recognizer.build_named))
        except SaneError:
            continue
        network, others = run_as(candidate), [(x, run_as(x)) for x in candidates[place + 1 :]]
        notes = notes_on_alternatives(network, candidate, others)
        if candidate.published and published and candidate.published in published:
            its_info = published[candidate.published].info
            told, note = info_of_published(info, its_info, candidate.counts.classes)
            network, notes = replace(network, info=told), (note, *notes)
        return replace(network, notes=notes)
    return PromptNetwork(graph=graph, info=info)


def network_of_builder(
    graph: WeightGraph, info: PromptInfo, build: Builder, names: Names | None = None
) -> PromptNetwork:
    """Return a file's network that a function builds, with other weights.

    `names` are the built network's names of tensors by the file's; None: they are the same.
    """
    names = names or {key: key for key in (*(p.key for p in graph.params), *graph.ties)}
    return PromptNetwork(graph=graph, info=info, build=partial(_with_weights, build, graph, names))


@torch.no_grad()
def _with_weights(build: Builder, graph: WeightGraph, names: Names) -> nn.Module:
    """Build a network and give it a graph's weights. Raises `SourceError` where they do not fit."""
    with drawing_from(torch.Generator()):  # no weight that is drawn is kept
        module = build()
    if computes_tensors(module):
        load_into(module, graph)
        return module.eval().requires_grad_(False)
    keys = {plain: graph.ties.get(key, key) for key, plain in names.items()}
    for name, own in (*module.named_parameters(), *module.named_buffers()):
        stored = graph.tensors[keys[name]] if name in keys else None
        if stored is not None and stored.shape == own.shape:
            own.copy_(stored)
        elif own.is_floating_point() and (stored is not None or name in module.state_dict()):
            found = "is missing" if stored is None else f"has the shape {shape_text(stored.shape)}"
            raise SourceError(
                f"{graph.source}, '{name}'",
                f"it {found}",
                f"the network needs {shape_text(own.shape)}",
                "check which network the weights are from",
            )
    return module.eval().requires_grad_(False)
