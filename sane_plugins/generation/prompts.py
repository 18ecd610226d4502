"""Choose prompt networks that fit the target and use its activation function.

The method: docs/explanation/sane.md, section 6.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path

from torch import nn

from sane_plugins.architectures import ACTIVATIONS
from sane_plugins.display import ShortRepr
from sane_plugins.errors import ZooError
from sane_plugins.grafting import PromptInfo, PromptNetwork, PromptOffer
from sane_plugins.prompts import choose_offers, class_notes
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph, from_module
from sane_plugins.zoo import Entry, Zoo

_CLASSIFIER_TENSORS = 2  # weight and bias
_ShapeList = list[tuple[int, ...]]


@dataclass(frozen=True, eq=False, repr=False)
class Prompts(ShortRepr):
    """Chosen networks, best first, and what a reader should know about the choice."""

    networks: tuple[PromptNetwork, ...]
    notes: tuple[str, ...]

    @property
    def graphs(self) -> tuple[WeightGraph, ...]:
        """Return the weights of the networks."""
        return tuple(network.graph for network in self.networks)


@lru_cache(maxsize=1)
def embedded_prompts() -> Zoo:
    """Return the prompt networks that ship with the package."""
    return Zoo.open(Path(str(files("sane_plugins") / "data" / "prompts")))


def choose_prompts(target: nn.Module, zoo: Zoo, count: int = 24) -> Prompts:
    """Choose `count` networks of a zoo for a target: activation, then shapes, then test accuracy decide.

    Where no network has the target's shapes, networks with the same input channels come before networks
    that share more shapes: it is their learned input filters that expansion reuses.

    Networks of several data sets alternate; which of them help on a task is measured on its images later.

    A network of the target's shapes but with another activation computes something else, so networks with
    the target's activation are preferred; a note says where there are none. Raises `ZooError` for an
    empty zoo.
    """
    entries = [e for e in zoo.entries if e.properties.get("finite", True)]
    if not entries:
        raise ZooError(
            zoo.name, "it holds no usable network", "prompts are needed", "use another zoo"
        )
    notes = []
    target_acts = activations(target)
    if same_activation := [e for e in entries if e.properties.get("act") in target_acts]:
        entries = same_activation
    else:
        notes.append(
            f"no prompt computes with the target's activation ({', '.join(sorted(target_acts)) or 'unknown'})"
        )
    ranked = _best_checkpoints(entries)
    target_shapes = [p.shape for p in from_module(target).params]
    matches = [_shape_match(shapes, target_shapes) for shapes in _entry_shapes(ranked, zoo)]
    best_matches = [e for e, match in zip(ranked, matches, strict=True) if match == max(matches)]
    chosen = _alternate_datasets(best_matches)[:count]
    return Prompts(tuple(_network(zoo, entry) for entry in chosen), tuple(notes))


def default_prompts(
    target: nn.Module,
    task: Task,
    offers: Callable[[], Mapping[str, PromptOffer]],
    read: Callable[[str], PromptNetwork],
) -> Prompts:
    """Choose the prompts where none are named: ours that fit, or the most alike of what is offered, or ours.

    Ours that fit are not transferred. `offers` returns what packages offer, and is asked where ours do not
    fit; `read` reads an offer by its name.
    """
    chosen = choose_prompts(target, embedded_prompts())
    ours = [p.shape for p in chosen.graphs[0].params]
    theirs = [tuple(x.shape) for x in target.state_dict().values() if x.is_floating_point()]
    if len(ours) == len(theirs) and ours[:-_CLASSIFIER_TENSORS] == theirs[:-_CLASSIFIER_TENSORS]:
        return replace(chosen, networks=tuple(replace(x, build=None) for x in chosen.networks))
    offered = choose_offers(offers(), read, target, task)
    if not offered.networks:
        return replace(chosen, notes=(*offered.notes, *chosen.notes))
    told = class_notes([network.info for network in offered.networks], task.classes)
    return Prompts(offered.networks, (*offered.notes, *told))


def _network(zoo: Zoo, entry: Entry) -> PromptNetwork:
    """Return an entry of a zoo, which can run where the zoo knows what builds it."""
    graph = zoo.graph(entry)
    task = str(entry.properties.get("dataset", ""))
    info = PromptInfo(name=graph.source, source=str(zoo.folder), task=task)
    build = partial(zoo.module, entry) if entry.factory else None
    return PromptNetwork(graph=graph, info=info, build=build)


def activations(module: nn.Module) -> frozenset[str]:
    """Return the names, as in a zoo, of the activation functions that the network has as modules."""
    types = {type(m) for m in module.modules()}
    return frozenset(name for name, module_type in ACTIVATIONS.items() if module_type in types)


def _best_checkpoints(entries: list[Entry]) -> list[Entry]:
    """Return the best checkpoint of each network, best first."""
    ranked = sorted(entries, key=lambda e: -float(e.properties.get("test_accuracy", 0.0)))
    best: dict[str, Entry] = {}
    for entry in ranked:
        best.setdefault(entry.network, entry)
    return list(best.values())


def _alternate_datasets(entries: list[Entry]) -> list[Entry]:
    """Order by the rank within each data set: accuracies on different tasks are not comparable."""
    count: dict[object, int] = {}
    ranks = []
    for entry in entries:
        dataset = entry.properties.get("dataset")
        count[dataset] = count.get(dataset, 0) + 1
        ranks.append(count[dataset])
    return [
        entry for _, entry in sorted(zip(ranks, entries, strict=True), key=lambda pair: pair[0])
    ]


def _entry_shapes(entries: list[Entry], zoo: Zoo) -> list[_ShapeList]:
    """Return the shapes of each entry's tensors; one entry of each architecture is read."""
    shapes: dict[str, _ShapeList] = {}
    architectures = [json.dumps([entry.form, dict(entry.factory)]) for entry in entries]
    for entry, architecture in zip(entries, architectures, strict=True):
        if architecture not in shapes:
            shapes[architecture] = [p.shape for p in zoo.graph(entry).params]
    return [shapes[architecture] for architecture in architectures]


def _shape_match(prompt_shapes: _ShapeList, target_shapes: _ShapeList) -> tuple[bool, bool, int]:
    """Return whether all but the classifier's shapes match, if input channels do, and how many shapes do."""
    equal_count = 0
    if len(prompt_shapes) == len(target_shapes):
        equal_count = sum(a == b for a, b in zip(prompt_shapes, target_shapes, strict=True))
    same_input_channels = [x[1:2] for x in prompt_shapes[:1]] == [x[1:2] for x in target_shapes[:1]]
    return (
        equal_count > 0 and equal_count >= len(target_shapes) - _CLASSIFIER_TENSORS,
        same_input_channels,
        equal_count,
    )
