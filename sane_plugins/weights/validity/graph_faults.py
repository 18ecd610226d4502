"""Whether a graph holds together as a whole: fields, tensors, owners and connections."""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.weights.layers import Param, shape_text
from sane_plugins.weights.validity.fault import GraphFault, short, show, type_of
from sane_plugins.weights.validity.layer_descriptions import layer_faults
from sane_plugins.weights.validity.operations import bias_faults

if TYPE_CHECKING:
    from sane_plugins.weights.graph import WeightGraph

_PLAIN = (dict, OrderedDict, MappingProxyType)  # their values are in memory
_TEXTS: Mapping[str, type] = {
    "untouched": str,
    "ties": str,
    "missed": int,
    "converted": str,
}


def find_fault(graph: WeightGraph) -> GraphFault | None:
    """Return the first fault of a graph, or None; lazily stored tensors are told by their names alone."""
    faults = (fault for check in _CHECKS for fault in check(graph))
    return next(faults, None)  # a check takes for granted what those before it found right


def require_valid(graph: WeightGraph) -> WeightGraph:
    """Return a graph; raise `SourceError` where it does not hold together."""
    if (fault := find_fault(graph)) is not None:
        raise SourceError(
            f"{graph.source}, {fault.place}",
            fault.found,
            fault.needed,
            "repair what made the graph",
        )
    return graph


def stored_fault(param: Param, tensor: Any) -> GraphFault | None:
    """Return what is wrong with the tensor that a param describes."""
    place = f"tensor '{param.key}'"
    if not isinstance(tensor, torch.Tensor):
        return GraphFault(place, f"it is {type_of(tensor)}", "a torch.Tensor is needed")
    if tensor.shape != param.shape:
        return GraphFault(
            place,
            f"its param says the shape {shape_text(param.shape)}",
            f"{shape_text(tensor.shape)} is needed, that of the tensor",
        )
    if tensor.dtype != param.dtype:
        return GraphFault(
            place,
            f"its param says {short(param.dtype)}",
            f"{short(tensor.dtype)} is needed, the type of the tensor",
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        return GraphFault(place, "it is sparse or quantised", "a plain tensor is needed")
    return None


def _field_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    plain: tuple[tuple[str, type], ...] = (
        ("source", str),
        ("container", str),
        ("layers", tuple),
        ("notes", tuple),
    )
    for field, kind in plain:
        if not isinstance(value := getattr(graph, field), kind):
            yield GraphFault(
                f"`{field}`", f"it is {type_of(value)}", f"a {kind.__name__} is needed"
            )
    if not isinstance(graph.tensors, Mapping):
        found = f"it is {type_of(graph.tensors)}"
        yield GraphFault("`tensors`", found, "a mapping from keys to tensors is needed")
    for field, kind in _TEXTS.items():
        value = getattr(graph, field)
        noun = "texts" if kind is str else "whole numbers"
        needed = f"a mapping from keys to {noun} is needed"
        if not isinstance(value, Mapping):
            yield GraphFault(f"`{field}`", f"it is {type_of(value)}", needed)
        for key, entry in value.items():
            if not isinstance(key, str) or not isinstance(entry, kind):
                yield GraphFault(f"`{field}`", f"it maps {show(key)} to {show(entry)}", needed)


def _width_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    for layer in graph.layers:
        yield from bias_faults(layer)


def _tensor_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    keys, in_memory = {*graph.tensors}, _in_memory(graph.tensors)
    for layer in graph.layers:
        for param in layer.params:
            if param.key not in keys:
                yield GraphFault(
                    f"layer '{layer.name}'",
                    f"`tensors` has no '{param.key}'",
                    "the tensor of each param is needed",
                )
            if param.key in in_memory:
                fault = stored_fault(param, in_memory[param.key])
                if fault is not None:
                    yield fault
    for key, tensor in in_memory.items():
        if not isinstance(tensor, torch.Tensor):
            yield GraphFault(
                f"tensor {show(key)}", f"it is {type_of(tensor)}", "a torch.Tensor is needed"
            )


def _in_memory(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return those tensors that are there without being read."""
    if isinstance(tensors, ChainMap):
        known = [_in_memory(part) for part in tensors.maps]
        found: dict[str, Any] = {}
        for part, inside in zip(reversed(tensors.maps), reversed(known), strict=True):
            for key in part if inside is not part else ():
                found.pop(key, None)
            found.update(inside)
        return found
    return tensors if type(tensors) in _PLAIN else {}


def _owner_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    keys = {*graph.tensors}
    owned = {param.key for layer in graph.layers for param in layer.params}
    for key in _first(keys - owned - graph.ties.keys() - graph.untouched.keys()):
        yield GraphFault(
            f"tensor '{key}'",
            "no layer owns it",
            "a layer, or a reason in `untouched`, or its owner in `ties` is needed",
        )
    for key in _first(owned & graph.untouched.keys()):
        yield GraphFault(f"tensor '{key}'", "a layer owns it and it is untouched", "one is needed")
    for key in _first(owned & graph.ties.keys()):
        yield GraphFault(f"tensor '{key}'", "a layer owns it and it is a tie", "one is needed")
    for alias, owner in graph.ties.items():
        if owner not in keys or owner in graph.ties:
            found = "which is a tie too" if owner in graph.ties else "which is no tensor"
            yield GraphFault(
                f"tie '{alias}'", f"it stands for '{owner}', {found}", "an owned tensor is needed"
            )
    for key in _first(graph.converted.keys() - owned):
        yield GraphFault(f"`converted`, '{key}'", "no layer owns it", "owned tensors are needed")


def _input_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    names = {layer.name for layer in graph.layers}
    for layer in graph.layers:
        for name in layer.inputs:
            if name not in names:
                yield GraphFault(
                    f"layer '{layer.name}'",
                    f"it reads '{name}', and no layer has this name",
                    "the names of layers are needed in `inputs`",
                )
    try:
        TopologicalSorter({x.name: x.inputs for x in graph.layers}).prepare()
    except CycleError as error:
        circle = " -> ".join(f"'{name}'" for name in error.args[1][:4])
        yield GraphFault(
            f"layer '{error.args[1][0]}'",
            f"it reads its own output ({circle})",
            "layers without a circle are needed",
        )


def _first(keys: Iterable[str]) -> Iterator[str]:
    """Yield the first of a set's keys, the same in every run."""
    yield from sorted(keys)[:1]


_CHECKS = (
    _field_faults,
    layer_faults,
    _tensor_faults,
    _width_faults,
    _owner_faults,
    _input_faults,
)
