"""One order of a network's layers, whatever form it came in.

Where the connections are known, they alone say it (`LayerWalk`). Where they are not, names and shapes alone
do, so that any container of the same tensors gives the same order.
The method: docs/explanation/sane.md, section 10.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError
from itertools import chain

from sane_plugins.symmetry.layer_walk import LayerWalk
from sane_plugins.weights import (
    NORM_ROLES,
    Layer,
    Param,
    Role,
    WeightGraph,
    natural_key,
    recurrent_place,
)

_MATRIX_KINDS = ("linear", "conv", "transposed_conv")
# By their number: of `layer_norm` and `group_norm`, and of `batch_norm`.
_READ_ROLES: Mapping[int, tuple[Role, ...]] = {
    1: ("scale",),
    2: ("scale", "shift"),
    4: ("running_mean", "running_var", "scale", "shift"),
}
_ROLE_PLACES = {role: place for place, role in enumerate(NORM_ROLES.values())}


def canonical_layers(graph: WeightGraph) -> WeightGraph:
    """Return the same network with its layers, and the tensors of each, in canonical order."""
    try:
        layers = _connected(graph) if graph.has_topology else _by_name(graph.layers)
    except CycleError:  # what feeds itself has no order of its own
        layers = _by_name(graph.layers)
    ordered = (replace(layer, params=_in_order(layer.params)) for layer in layers)
    return replace(graph, layers=tuple(ordered))


def _connected(graph: WeightGraph) -> list[Layer]:
    layers = _merged([*_split(graph)])
    return LayerWalk(layers, graph.tensors).layers()


def _by_name(layers: Iterable[Layer]) -> list[Layer]:
    return sorted(layers, key=lambda layer: natural_key(layer.name))


def _split(graph: WeightGraph) -> Iterable[Layer]:
    """Yield the layers, with each parameter where it is read: beside others if they are read together."""
    readers: dict[str, list[str]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer.name)
    parameters = [layer for layer in graph.layers if layer.is_value]
    params = {param.key: param for param in graph.params}
    names: dict[str, str] = {}  # of the parameter layer that stands for a tensor
    for layer in parameters:
        names.setdefault(graph.ties.get(layer.name, layer.name), layer.name)
    owned: dict[str, list[Param]] = {layer.name: [] for layer in parameters}
    for layer in parameters:
        for param in layer.params:
            own = names.get(param.key, layer.name)
            is_together = readers.get(own) == readers.get(layer.name)
            owned[layer.name if is_together else own].append(params[param.key])
    for layer in graph.layers:
        own_params = tuple(owned.get(layer.name, layer.params))
        kind = layer.kind if own_params == layer.params else "parameter"
        yield replace(layer, kind=kind, params=own_params)


def _merged(layers: Sequence[Layer]) -> list[Layer]:
    """Give matrix products and norms the parameters that they alone read, as torch's layers have."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    given = {
        layer.name: layer.params for layer in layers if layer.is_value and readers[layer.name] == 1
    }
    taken: set[str] = set()
    merged = []
    for layer in layers:
        read = [name for name in layer.inputs if name in given]
        params = (*layer.params, *chain.from_iterable(given[name] for name in read))
        if read and _is_one_layer(layer, params):
            taken.update(read)
            params = _with_roles(layer, params)
            inputs = tuple(name for name in layer.inputs if name not in given)
            layer = replace(layer, params=params, inputs=inputs)
        merged.append(layer)
    return [layer for layer in merged if layer.name not in taken]


def _with_roles(layer: Layer, params: tuple[Param, ...]) -> tuple[Param, ...]:
    """Return what a norm reads, with roles: where none is known, as torch's functions take them."""
    roles = _READ_ROLES.get(len(params), ())
    is_known = any(param.role in _ROLE_PLACES for param in params)
    if layer.kind != "norm" or is_known or len(roles) != len(params):
        return params
    return tuple(replace(param, role=role) for param, role in zip(params, roles, strict=True))


def _is_one_layer(layer: Layer, params: Sequence[Param]) -> bool:
    """Return whether a layer with these parameters is a norm, or one matrix with a bias of its rows."""
    matrices = [p for p in params if len(p.shape) > 1]
    if layer.kind == "norm":
        return not matrices
    vectors = [p for p in params if len(p.shape) == 1]
    is_plain = len(matrices) == 1 and len(matrices) + len(vectors) == len(params)
    return layer.kind in _MATRIX_KINDS and is_plain and len(vectors) < 2


def _in_order(params: Iterable[Param]) -> tuple[Param, ...]:
    """Return a layer's tensors: matrices first; scale, shift and statistics of a norm; then by name."""
    return tuple(sorted(params, key=_place))


def _place(param: Param) -> tuple[object, ...]:
    attribute, is_vector = param.key.rpartition(".")[2], len(param.shape) < 2
    if recurrent := recurrent_place(attribute):
        return 0, recurrent, is_vector, 0, []
    role = param.role if param.role in _ROLE_PLACES else NORM_ROLES.get(attribute, "scale")
    place = 1 if param.role == "bias" else _ROLE_PLACES[role]
    return 0, (0, False, False, 0), is_vector, place, natural_key(attribute)
