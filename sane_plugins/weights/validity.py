"""Whether a graph holds together: names, kinds, shapes, owners, connections. No stored value is read."""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import torch

from sane_plugins.errors import SourceError
from sane_plugins.weights.layers import MAX_AXES, Kind, Layer, Param, Role, shape_text

if TYPE_CHECKING:
    from sane_plugins.weights.graph import WeightGraph

_KINDS, _ROLES = get_args(Kind), get_args(Role)
_MATRIX_KINDS = ("conv", "transposed_conv", "linear")
_LEAST_RANK = {"conv": 3, "transposed_conv": 3, "linear": 2, "embedding": 2}
_GROUPED = ("conv", "transposed_conv", "norm")
_NEEDS_DIMS: Mapping[str, tuple[int, str]] = {
    "flatten": (1, "the first axis that is flattened"),
    "concat": (1, "the concatenated axis"),
    "transpose": (2, "the two exchanged axes"),
}
_NEEDS_SOME_DIMS = ("permute", "reduce", "squeeze", "unsqueeze")
_PLAIN = (dict, OrderedDict, MappingProxyType)  # their values are in memory
_TEXTS: Mapping[str, type] = {
    "untouched": str,
    "ties": str,
    "missed": int,
    "converted": str,
}


@dataclass(frozen=True)
class GraphFault:
    """What is wrong in a graph: the layer, tensor or field, what was found, and what is needed."""

    place: str
    found: str
    needed: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}, and {self.needed}"


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


def operation_fault(layer: Layer) -> GraphFault | None:
    """Return what is wrong with the dims, the groups, the ranks or the bias of a layer."""
    place = f"layer '{layer.name}'"
    checks = (_dims_faults, _groups_faults, _rank_faults)
    faults = chain(*(check(place, layer) for check in checks), _bias_faults(layer))
    return next(faults, None)


def possible(layer: Layer, kind: Kind = "opaque") -> Layer:
    """Return a layer, or one of another kind where its dims, groups or bias are those of no operation."""
    is_impossible = operation_fault(layer) is not None
    return replace(layer, kind=kind, groups=1, dims=()) if is_impossible else layer


def stored_fault(param: Param, tensor: Any) -> GraphFault | None:
    """Return what is wrong with the tensor that a param describes."""
    place = f"tensor '{param.key}'"
    if not isinstance(tensor, torch.Tensor):
        return GraphFault(place, f"it is {_type_of(tensor)}", "a torch.Tensor is needed")
    if tensor.shape != param.shape:
        return GraphFault(
            place,
            f"its param says the shape {shape_text(param.shape)}",
            f"{shape_text(tensor.shape)} is needed, that of the tensor",
        )
    if tensor.dtype != param.dtype:
        return GraphFault(
            place,
            f"its param says {_short(param.dtype)}",
            f"{_short(tensor.dtype)} is needed, the type of the tensor",
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
                f"`{field}`", f"it is {_type_of(value)}", f"a {kind.__name__} is needed"
            )
    if not isinstance(graph.tensors, Mapping):
        found = f"it is {_type_of(graph.tensors)}"
        yield GraphFault("`tensors`", found, "a mapping from keys to tensors is needed")
    for field, kind in _TEXTS.items():
        value = getattr(graph, field)
        noun = "texts" if kind is str else "whole numbers"
        needed = f"a mapping from keys to {noun} is needed"
        if not isinstance(value, Mapping):
            yield GraphFault(f"`{field}`", f"it is {_type_of(value)}", needed)
        for key, entry in value.items():
            if not isinstance(key, str) or not isinstance(entry, kind):
                yield GraphFault(f"`{field}`", f"it maps {_show(key)} to {_show(entry)}", needed)


def _layer_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    names: set[str] = set()
    for i, layer in enumerate(graph.layers):
        if not isinstance(layer, Layer) or not isinstance(layer.name, str):
            found = f"it is {_type_of(layer)}" if not isinstance(layer, Layer) else "it has no name"
            yield GraphFault(f"layer {i}", found, "a Layer whose name is a text is needed")
        place = f"layer '{layer.name}'"
        if layer.name in names:
            yield GraphFault(place, "two layers have this name", "a name of its own is needed")
        names.add(layer.name)
        if layer.kind not in _KINDS:
            yield GraphFault(
                place, f"its kind is {_show(layer.kind)}", f"one of {', '.join(_KINDS)} is needed"
            )
        for field, kind in (("params", Param), ("inputs", str), ("dims", int)):
            values = getattr(layer, field)
            if not isinstance(values, tuple) or not all(isinstance(x, kind) for x in values):
                noun = {"params": "Params", "inputs": "names of layers", "dims": "axes"}[field]
                found = f"its {field} are {_show(values)}"
                yield GraphFault(place, found, f"a tuple of {noun} is needed")
        for param in layer.params:
            yield from _param_faults(place, param)
        yield from _dims_faults(place, layer)
        yield from _groups_faults(place, layer)
        yield from _rank_faults(place, layer)


def _param_faults(place: str, param: Param) -> Iterator[GraphFault]:
    if not isinstance(param.key, str):
        yield GraphFault(place, f"a key is {_show(param.key)}", "a text is needed")
    place = f"{place}, '{param.key}'"
    if param.role not in _ROLES:
        yield GraphFault(
            place, f"its role is {_show(param.role)}", f"one of {', '.join(_ROLES)} is needed"
        )
    shape = param.shape
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        yield GraphFault(place, f"its shape is {_show(shape)}", "a tuple of sizes is needed")
    if type(param.axis) is not int or not 0 <= param.axis < max(len(shape), 1):
        yield GraphFault(
            place,
            f"its axis is {_show(param.axis)} and its shape {shape_text(shape)}",
            "the number of the axis of its output channels is needed",
        )
    if not isinstance(param.dtype, torch.dtype) or not param.dtype.is_floating_point:
        yield GraphFault(
            place,
            f"its dtype is {_short(param.dtype)}",
            "a floating-point type of torch is needed: name other tensors in `untouched`",
        )


def _dims_faults(place: str, layer: Layer) -> Iterator[GraphFault]:
    dims, found = layer.dims, f"the dims of this {layer.kind} are {_show(layer.dims)}"
    if layer.kind in _NEEDS_DIMS:
        count, what = _NEEDS_DIMS[layer.kind]
        if len(dims) != count:
            yield GraphFault(place, found, f"{what}, is needed" if count == 1 else f"{what} are")
    if layer.kind in _NEEDS_SOME_DIMS and not dims:
        yield GraphFault(place, found, "the axes that it changes are needed")
    if any(not -MAX_AXES <= axis < MAX_AXES for axis in dims):
        yield GraphFault(place, found, f"axes below {MAX_AXES} are needed")
    if layer.kind == "permute" and {x % len(dims) for x in dims} != {*range(len(dims))}:
        yield GraphFault(place, found, "each axis once, in the new order, is needed")


def _groups_faults(place: str, layer: Layer) -> Iterator[GraphFault]:
    groups, found = layer.groups, f"its groups are {_show(layer.groups)}"
    if type(groups) is not int or groups < 1:
        yield GraphFault(place, found, "a whole number from 1 is needed")
    if groups == 1:
        return
    if layer.kind not in _GROUPED:
        yield GraphFault(place, f"{found} and its kind is {layer.kind}", "1 is needed")
    for param in layer.params:
        if param.shape and param.shape[0] % groups and param.role in ("weight", "scale"):
            found = f"{found} and '{param.key}' has the shape {shape_text(param.shape)}"
            yield GraphFault(place, found, "a divisor of the first axis is needed")


def _rank_faults(place: str, layer: Layer) -> Iterator[GraphFault]:
    least = _LEAST_RANK.get(layer.kind, 0)
    for param in layer.params if least else ():
        if param.role == "weight" and len(param.shape) < least:
            yield GraphFault(
                place,
                f"'{param.key}' has the shape {shape_text(param.shape)}",
                f"the weight of this {layer.kind} needs {least} axes or more",
            )


def _width_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    for layer in graph.layers:
        yield from _bias_faults(layer)


def _bias_faults(layer: Layer) -> Iterator[GraphFault]:
    """Find a bias that does not fit its matrix: mostly, the axis of the matrix is another one."""
    if layer.kind not in _MATRIX_KINDS or len(layer.params) != 2:
        return
    weight, bias = layer.params
    if weight.role != "weight" or bias.role != "bias" or len(weight.shape) < 2:
        return
    outputs = weight.shape[weight.axis]
    if layer.kind == "transposed_conv" and weight.axis:
        outputs *= layer.groups
    if len(bias.shape) == 1 and bias.shape[0] not in (outputs, 1):
        yield GraphFault(
            f"layer '{layer.name}'",
            f"'{weight.key}' {shape_text(weight.shape)} gives {outputs} channels along axis"
            f" {weight.axis}, and '{bias.key}' has the shape {shape_text(bias.shape)}",
            "the axis of the outputs, and one value for each, are needed",
        )


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
                f"tensor {_show(key)}", f"it is {_type_of(tensor)}", "a torch.Tensor is needed"
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


def _type_of(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")[:60]


def _show(value: Any) -> str:
    is_plain = isinstance(value, str | int | float | tuple | list)
    return f"{value!r:.60}" if is_plain else _type_of(value)


_CHECKS = (
    _field_faults,
    _layer_faults,
    _tensor_faults,
    _width_faults,
    _owner_faults,
    _input_faults,
)
