"""The choice of prompt networks: they must fit the target, and compute with its activation function.

The method: docs/explanation/sane.md, section 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from torch import nn

from sane_plugins.architectures import ACTIVATIONS
from sane_plugins.display import ShortRepr
from sane_plugins.errors import ZooError
from sane_plugins.weights import WeightGraph, from_module
from sane_plugins.zoo import Entry, Zoo

_CLASSIFIER = 2  # tensors


@dataclass(frozen=True, eq=False, repr=False)
class Prompts(ShortRepr):
    """Chosen networks, best first, and what a reader should know about the choice."""

    graphs: tuple[WeightGraph, ...]
    notes: tuple[str, ...]


@lru_cache(maxsize=1)
def embedded_prompts() -> Zoo:
    """Return the prompt networks that ship with the package."""
    return Zoo.open(Path(str(files("sane_plugins") / "data" / "prompts")))


def choose_prompts(target: nn.Module, zoo: Zoo, count: int = 24) -> Prompts:
    """Choose `count` networks of a zoo for a target: activation, then shapes, then test accuracy decide.

    Where no network has the target's shapes, those that read as many channels come before those that share
    more shapes: what they have learned to see is what expands.

    Networks of several data sets take turns; which of them help on a task is measured on its images later.

    A network of the target's shapes but with another activation computes something else, so those with the
    target's activation are taken wherever there are any; the notes say where not. Raises `ZooError` for an
    empty zoo.
    """
    entries = [e for e in zoo.entries if e.properties.get("finite", True)]
    if not entries:
        raise ZooError(
            zoo.name, "it holds no usable network", "prompts are needed", "use another zoo"
        )
    notes = []
    acts = activations(target)
    if alike := [e for e in entries if e.properties.get("act") in acts]:
        entries = alike
    else:
        notes.append(
            f"no prompt computes with the target's activation ({', '.join(sorted(acts)) or 'unknown'})"
        )
    shapes = [p.shape for p in from_module(target).params]
    fit = {e.key: _fit(zoo.graph(e), shapes) for e in _one_each(entries)}
    most = max(fit.values())
    chosen = _in_turn([e for e in _one_each(entries) if fit[e.key] == most])[:count]
    return Prompts(tuple(zoo.graph(e) for e in chosen), tuple(notes))


def activations(module: nn.Module) -> frozenset[str]:
    """Return the zoo's names of the activation functions that the network has as modules."""
    types = {type(m) for m in module.modules()}
    return frozenset(name for name, kind in ACTIVATIONS.items() if kind in types)


def _one_each(entries: list[Entry]) -> list[Entry]:
    """Return the best checkpoint of each network, best first."""
    ranked = sorted(entries, key=lambda e: -float(e.properties.get("test_accuracy", 0.0)))
    best: dict[str, Entry] = {}
    for entry in ranked:
        best.setdefault(entry.network, entry)
    return list(best.values())


def _in_turn(entries: list[Entry]) -> list[Entry]:
    """Order by the rank within each data set: accuracies on different tasks do not compare."""
    seen: dict[object, int] = {}
    ranks = []
    for entry in entries:
        dataset = entry.properties.get("dataset")
        seen[dataset] = seen.get(dataset, 0) + 1
        ranks.append(seen[dataset])
    return [
        entry for _, entry in sorted(zip(ranks, entries, strict=True), key=lambda pair: pair[0])
    ]


def _fit(graph: WeightGraph, shapes: list[tuple[int, ...]]) -> tuple[bool, bool, int]:
    """Return whether all shapes but a classifier's are alike, whether the images' channels are; how many."""
    own = [p.shape for p in graph.params]
    same = 0
    if len(own) == len(shapes):
        same = sum(a == b for a, b in zip(own, shapes, strict=True))
    reads_alike = [x[1:2] for x in own[:1]] == [x[1:2] for x in shapes[:1]]
    return same > 0 and same >= len(shapes) - _CLASSIFIER, reads_alike, same
