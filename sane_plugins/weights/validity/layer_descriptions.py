"""Whether each layer of a graph is well described: its name, kind, params and operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

import torch

from sane_plugins.weights.layers import Kind, Layer, Param, Role, shape_text
from sane_plugins.weights.validity.fault import GraphFault, short, show, type_of
from sane_plugins.weights.validity.operations import dims_faults, groups_faults, rank_faults

if TYPE_CHECKING:
    from sane_plugins.weights.graph import WeightGraph

_KINDS, _ROLES = get_args(Kind), get_args(Role)


def layer_faults(graph: WeightGraph) -> Iterator[GraphFault]:
    """Find what is wrong with the layers of a graph, one by one."""
    names: set[str] = set()
    for i, layer in enumerate(graph.layers):
        if not isinstance(layer, Layer) or not isinstance(layer.name, str):
            found = f"it is {type_of(layer)}" if not isinstance(layer, Layer) else "it has no name"
            yield GraphFault(f"layer {i}", found, "a Layer whose name is a text is needed")
        place = f"layer '{layer.name}'"
        if layer.name in names:
            yield GraphFault(place, "two layers have this name", "a name of its own is needed")
        names.add(layer.name)
        if layer.kind not in _KINDS:
            yield GraphFault(
                place, f"its kind is {show(layer.kind)}", f"one of {', '.join(_KINDS)} is needed"
            )
        for field, kind in (("params", Param), ("inputs", str), ("dims", int)):
            values = getattr(layer, field)
            if not isinstance(values, tuple) or not all(isinstance(x, kind) for x in values):
                noun = {"params": "Params", "inputs": "names of layers", "dims": "axes"}[field]
                found = f"its {field} are {show(values)}"
                yield GraphFault(place, found, f"a tuple of {noun} is needed")
        for param in layer.params:
            yield from _param_faults(place, param)
        yield from dims_faults(place, layer)
        yield from groups_faults(place, layer)
        yield from rank_faults(place, layer)


def _param_faults(place: str, param: Param) -> Iterator[GraphFault]:
    if not isinstance(param.key, str):
        yield GraphFault(place, f"a key is {show(param.key)}", "a text is needed")
    place = f"{place}, '{param.key}'"
    if param.role not in _ROLES:
        yield GraphFault(
            place, f"its role is {show(param.role)}", f"one of {', '.join(_ROLES)} is needed"
        )
    shape = param.shape
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        yield GraphFault(place, f"its shape is {show(shape)}", "a tuple of sizes is needed")
    if type(param.axis) is not int or not 0 <= param.axis < max(len(shape), 1):
        yield GraphFault(
            place,
            f"its axis is {show(param.axis)} and its shape {shape_text(shape)}",
            "the number of the axis of its output channels is needed",
        )
    if not isinstance(param.dtype, torch.dtype) or not param.dtype.is_floating_point:
        yield GraphFault(
            place,
            f"its dtype is {short(param.dtype)}",
            "a floating-point type of torch is needed: name other tensors in `untouched`",
        )
