"""Was a network trained, in whole or in part?

The method: docs/explanation/sane.md, section 9.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sane_plugins.health.drawn import UNKNOWN
from sane_plugins.health.layer_evidence import LayerEvidence
from sane_plugins.weights import WeightGraph

_ENOUGH = 1.0  # of a recipe, over the layers that fit it
_ENOUGH_OF_A_LAYER = 0.25
_MOST_TRAINED = 0.1  # of the values, and of the layers, of a network that is called untrained
_MOST_HEAD_LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The layers at their initial law, those that were trained, and whether the former are a classifier.

    drawn_share: of the values in layers of which either is known, how many are in the former. `is_untrained`:
    next to nothing was trained.
    """

    drawn: tuple[str, ...]
    trained: tuple[str, ...]
    recipes: tuple[str, ...]
    drawn_share: float
    is_untrained: bool
    is_only_head: bool


def find_training_state(graph: WeightGraph, layers: Sequence[LayerEvidence]) -> TrainingState:
    """Decide layer by layer, given what each tells, with the recipes that the network as a whole shows."""
    support: dict[str, float] = {}
    for layer in layers:
        for recipe, weight in layer.weight_of.items():
            support[recipe] = support.get(recipe, 0.0) + weight
    sure = {recipe for recipe, weight in support.items() if weight >= _ENOUGH}

    def is_drawn(layer: LayerEvidence) -> bool:
        return any(
            recipe in sure and weight >= (_ENOUGH if recipe == UNKNOWN else _ENOUGH_OF_A_LAYER)
            for recipe, weight in layer.weight_of.items()
        )

    drawn = [layer for layer in layers if not layer.is_trained and is_drawn(layer)]
    trained = [layer for layer in layers if layer.is_trained]
    norms = [layer for layer in layers if layer.is_norm]
    fresh_norms = [layer for layer in norms if layer.is_fresh_norm]
    moved = [x for x in trained if x.is_matrix]
    share = sum(x.values for x in drawn) / max(sum(x.values for x in (*drawn, *moved)), 1)
    is_untrained = (
        bool(drawn)
        and share >= 1 - _MOST_TRAINED
        and len(moved) <= _MOST_TRAINED * len((*drawn, *moved))
        and len(fresh_norms) >= len(norms) / 2  # they move first
    )
    if trained and (drawn or len(fresh_norms) > 1):
        drawn = [x for x in layers if x in drawn or x in fresh_norms]
    return TrainingState(
        drawn=tuple(x.name for x in drawn),
        trained=tuple(x.name for x in trained),
        recipes=_fewest_recipes(drawn, sure),
        drawn_share=share,
        is_untrained=is_untrained,
        is_only_head=_is_head(graph, layers, {x.name for x in drawn}),
    )


def _fewest_recipes(drawn: Sequence[LayerEvidence], sure: set[str]) -> tuple[str, ...]:
    """Return recipes that explain all drawn layers: the one of most layers first, then of the rest."""
    left, chosen = [x for x in drawn if x.weight_of], []
    while left:
        counts = {r: sum(r in x.weight_of for x in left) for r in sorted(sure, key=_by_name)}
        best = max(counts, key=lambda r: counts[r] / (1 + (r == UNKNOWN) * len(drawn)), default="")
        if not counts.get(best):
            break
        chosen.append(best)
        left = [x for x in left if best not in x.weight_of]
    return tuple(chosen)


def _by_name(recipe: str) -> tuple[int, str]:
    """Order recipes, those with fewer words first."""
    return len(recipe), recipe


def _is_head(graph: WeightGraph, layers: Sequence[LayerEvidence], drawn: set[str]) -> bool:
    """Return whether the drawn layers are the last few, all linear, behind trained ones."""
    known = [x for x in layers if x.is_matrix and (x.name in drawn or x.is_trained)]
    last = known[len(known) - len(drawn) :]
    return (
        len(drawn) <= _MOST_HEAD_LAYERS
        and {x.name for x in last} == drawn
        and all(_is_linear(graph, x.name) for x in last)
    )


def _is_linear(graph: WeightGraph, name: str) -> bool:
    """Return whether a layer multiplies by a matrix, convolutions with one place included."""
    layer = next(x for x in graph.layers if x.name == name)
    return all(set(p.shape[2:]) <= {1} for p in layer.params)
