"""Differences of tensors put together by layer, and norms that one network holds in its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sane_plugins.comparison.difference import LayerDifference, TensorDifference
from sane_plugins.comparison.folded_norms import FoldedNorm, find_folded_norms
from sane_plugins.weights import RUNNING, Layer, Param, WeightGraph


def layer_differences(
    a: WeightGraph, b: WeightGraph, differences: Sequence[TensorDifference]
) -> tuple[LayerDifference, ...]:
    """Return what became of each layer, in the order of the first network."""
    folded_a = [*find_folded_norms(a, b, differences, False)]
    folded_b = [*find_folded_norms(b, a, differences, True)]
    differences = _without_folded(differences, folded_a, folded_b)
    owners_a, owners_b = (_owners(graph) for graph in (a, b))
    owners_a |= {x.bias.a.key: x.before for x in folded_a if x.bias}
    owners_b |= {x.bias.b.key: x.before for x in folded_b if x.bias}
    tensors: dict[tuple[str, str], list[TensorDifference]] = {}
    for x in differences:
        names = owners_a[x.a.key].name, owners_b[x.b.key].name
        tensors.setdefault(names, []).append(x)
    alone_a = _alone(a, owners_a, {x.a.key for x in differences})
    alone_b = _alone(b, owners_b, {x.b.key for x in differences})
    kinds = {x.name: _kind(x) for graph in (a, b) for x in reversed(graph.layers)}
    layers = []
    for (one, other), found in sorted(tensors.items(), key=lambda pair: -_size(pair[1])):
        layers.append(  # what is alone stays with the largest part of its layer
            LayerDifference(
                name_a=one,
                name_b=other,
                kind=kinds[one],
                tensors=tuple(found),
                only_a=tuple(alone_a.pop(one, ())),
                only_b=tuple(alone_b.pop(other, ())),
            )
        )
    into_a = {x.norm.name: x.into.name for x in folded_a}
    into_b = {x.norm.name: x.into.name for x in folded_b}
    layers += [
        LayerDifference(
            name_a=x, name_b="", kind=kinds[x], only_a=tuple(p), folded_into=into_a.get(x, "")
        )
        for x, p in alone_a.items()
    ]
    layers += [
        LayerDifference(
            name_a="", name_b=x, kind=kinds[x], only_b=tuple(p), folded_into=into_b.get(x, "")
        )
        for x, p in alone_b.items()
    ]
    return tuple(_in_order(layers, a, b))


def _without_folded(
    differences: Iterable[TensorDifference],
    folded_a: Sequence[FoldedNorm],
    folded_b: Sequence[FoldedNorm],
) -> list[TensorDifference]:
    """Return the differences with the biases that folded norms make, and without the norms themselves."""
    folded = (*folded_a, *folded_b)
    biases = [x.bias for x in folded if x.bias]
    weights = {x.weight.a.key for x in folded}
    gone_a = {p.key for x in folded_a for p in x.norm.params} | {x.a.key for x in biases}
    gone_b = {p.key for x in folded_b for p in x.norm.params} | {x.b.key for x in biases}
    kept = [
        replace(x, is_folded=x.a.key in weights)
        for x in differences
        if x.a.key not in gone_a and x.b.key not in gone_b
    ]
    return kept + biases


def _owners(graph: WeightGraph) -> dict[str, Layer]:
    """Return the layer of each tensor: the first that has it."""
    return {p.key: layer for layer in reversed(graph.layers) for p in layer.params}


def _alone(
    graph: WeightGraph, owners: Mapping[str, Layer], paired: set[str]
) -> dict[str, list[Param]]:
    """Return by layer the tensors that have no partner."""
    alone: dict[str, list[Param]] = {}
    for param in graph.params:
        if param.key not in paired:
            alone.setdefault(owners[param.key].name, []).append(param)
    return alone


def _kind(layer: Layer) -> str:
    """Return a layer's kind, by its tensors where the source does not say it."""
    if layer.kind != "unknown" or not layer.params:
        return layer.kind.replace("_", " ")
    if any(p.role in RUNNING for p in layer.params):
        return "norm"
    axes = max(len(p.shape) for p in layer.params)
    return "vector" if axes < 2 else "matrix" if axes == 2 else "kernels"


def _size(differences: Iterable[TensorDifference]) -> int:
    return sum(x.size for x in differences)


def _in_order(
    layers: Iterable[LayerDifference], a: WeightGraph, b: WeightGraph
) -> list[LayerDifference]:
    """Return the layers in the order of the first network; those of the second alone keep their own."""
    layers = [*layers]
    places_a = {x.name: float(i) for i, x in enumerate(a.layers)}
    partners: dict[str, str] = {}
    for layer in layers:
        if layer.name_a and layer.name_b:
            partners.setdefault(layer.name_b, layer.name_a)
    places_b, last = {}, -1.0
    for i, own in enumerate(b.layers):
        last = places_a.get(partners.get(own.name, ""), last)
        places_b[own.name] = last + 0.5 + i / (4 * len(b.layers))
    return sorted(layers, key=lambda x: places_a.get(x.name_a, places_b.get(x.name_b, 0.0)))
