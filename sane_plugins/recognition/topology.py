"""Give a file's tensors the layers of a network of the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import get_args

import torch

from sane_plugins.symmetry import permutation_groups
from sane_plugins.weights import (
    NORM_ROLES,
    Kind,
    Param,
    WeightGraph,
    layer_name,
    vectors_last,
)

Names = Mapping[str, str]
"""Names in a network, by those in a file."""
_WEIGHTED = get_args(Kind)[:7]  # kinds of layers with weights
# How notes begin on what a network of the same names answers.
_ANSWERED = (
    "recognised as",
    "no topology",
    "topology inferred",
    "layers come in the order of their names",
)
LayerKinds = Sequence[tuple[Kind, int]]
"""Kind and groups of each layer with weights, by the layers' names in order."""


def with_layers_of(graph: WeightGraph, network: WeightGraph, names: Names) -> WeightGraph | None:
    """Return a file's graph with the layers, connections and roles of a network of the same names.

    None where the network ties tensors that differ in the file.
    """
    stored = {plain: key for key, plain in names.items()}
    ties = dict(graph.ties)
    for alias, owner in network.ties.items():
        one, other = (ties.get(stored[key], stored[key]) for key in (alias, owner))
        if one != other:
            if not torch.equal(graph.tensors[one], graph.tensors[other]):
                return None
            ties = {key: other if key == one else owner for key, owner in ties.items()}
            ties[one] = other
    params = {param.key: param for param in graph.params}

    def of_file(param: Param) -> Param:
        key = stored[param.key]
        return replace(params[ties.get(key, key)], role=param.role, axis=param.axis)

    layers = tuple(
        replace(layer, params=tuple(map(of_file, layer.params))) for layer in network.layers
    )
    notes = tuple(note for note in graph.notes if not note.startswith(_ANSWERED))
    return replace(graph, layers=layers, ties=ties, notes=(*network.notes, *notes))


def with_own_layer_names(graph: WeightGraph, names: Names) -> WeightGraph:
    """Return a graph whose layers, named as in a network of other names, are named as in its file."""
    stored = {layer_name(plain): layer_name(key) for key, plain in names.items()}
    stored |= {plain: key for key, plain in names.items()}  # of lone parameters
    weighted = {layer.name for layer in graph.layers if layer.params}
    renamed = {layer.name: layer.name for layer in graph.layers} | {
        name: stored[name] for name in weighted & stored.keys()
    }
    if len({*renamed.values()}) < len(renamed):  # an operation is called like a layer of the file
        return graph
    layers = tuple(
        replace(layer, name=renamed[layer.name], inputs=tuple(renamed[x] for x in layer.inputs))
        for layer in graph.layers
    )
    return replace(graph, layers=layers)


def with_kinds(graph: WeightGraph, kinds: LayerKinds, names: Names) -> WeightGraph:
    """Return a file's graph with the kinds of its layers; those of no kind of layer stay as they are."""
    by_name = dict(zip(_layer_names(names.values()), kinds, strict=True))
    layers = []
    for layer in graph.layers:
        if layer.params:
            kind, groups = by_name[layer_name(names[layer.params[0].key])]
            if kind in _WEIGHTED:
                params = vectors_last(_typed(param, kind, names) for param in layer.params)
                layer = replace(layer, kind=kind, groups=groups, params=params)
        layers.append(layer)
    return replace(graph, layers=tuple(layers))


def layer_kinds(network: WeightGraph) -> LayerKinds:
    """Return what `with_kinds` needs to know of a network."""
    kinds: dict[str, tuple[Kind, int]] = {}
    owners = {param.key: layer for layer in network.layers for param in layer.params}
    keys = [*owners, *network.ties]
    for key in keys:
        layer = owners[network.ties.get(key, key)]
        kinds.setdefault(layer_name(key), (layer.kind, layer.groups))
    return [kinds[name] for name in _layer_names(keys)]


def topology_digest(network: WeightGraph) -> str:
    """Return a digest that networks of the same names share where they are connected in the same way.

    It covers kinds of layers with weights, which of them each reads, and which channels may change places.
    """
    weighted = {layer.name: layer for layer in network.layers if layer.params}
    inputs = {layer.name: layer.inputs for layer in network.layers}
    label = {name: min(p.key for p in layer.params) for name, layer in weighted.items()}
    rows = [
        f"{sorted(p.key for p in layer.params)} {layer.kind} {layer.groups} {layer.dims}"
        f" {sorted(label[x] for x in _weighted_inputs(name, inputs, weighted.keys()))}"
        for name, layer in weighted.items()
    ]
    rows += [
        f"{group.size} {group.blocks} {sorted(map(str, group.slices))}"
        for group in permutation_groups(network)
    ]
    return sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16]


def _weighted_inputs(
    name: str, inputs: Mapping[str, Sequence[str]], weighted: Iterable[str]
) -> set[str]:
    """Return the layers with weights that a layer reads, directly or through others."""
    found: set[str] = set()
    seen: set[str] = set()
    pending = [*inputs[name]]
    while pending:
        reads = pending.pop()
        if reads in weighted:
            found.add(reads)
        elif reads not in seen:
            seen.add(reads)
            pending += inputs.get(reads, ())
    return found


def _layer_names(keys: Iterable[str]) -> list[str]:
    return sorted({layer_name(key) for key in keys})


def _typed(param: Param, kind: Kind, names: Names) -> Param:
    """Return a tensor with the role and the axis that it has in a layer of a kind."""
    attribute = names[param.key].rpartition(".")[2]
    if kind == "norm":
        return replace(param, role=NORM_ROLES.get(attribute, "other"))
    return replace(param, axis=int(kind == "transposed_conv" and len(param.shape) > 1))
