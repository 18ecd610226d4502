"""Whether a layer is what an operation can do: its dims, groups, ranks and bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain

from sane_plugins.weights.layers import MAX_AXES, Kind, Layer, shape_text
from sane_plugins.weights.validity.fault import GraphFault, show

_MATRIX_KINDS = ("conv", "transposed_conv", "linear")
_LEAST_RANK = {"conv": 3, "transposed_conv": 3, "linear": 2, "embedding": 2}
_GROUPED = ("conv", "transposed_conv", "norm")
_NEEDS_DIMS: Mapping[str, tuple[int, str]] = {
    "flatten": (1, "the first axis that is flattened"),
    "concat": (1, "the concatenated axis"),
    "transpose": (2, "the two exchanged axes"),
}
_NEEDS_SOME_DIMS = ("permute", "reduce", "squeeze", "unsqueeze")


def operation_fault(layer: Layer) -> GraphFault | None:
    """Return what is wrong with the dims, the groups, the ranks or the bias of a layer."""
    place = f"layer '{layer.name}'"
    checks = (dims_faults, groups_faults, rank_faults)
    faults = chain(*(check(place, layer) for check in checks), bias_faults(layer))
    return next(faults, None)


def possible(layer: Layer, kind: Kind = "opaque") -> Layer:
    """Return a layer, or one of another kind where its dims, groups or bias are those of no operation."""
    is_impossible = operation_fault(layer) is not None
    return replace(layer, kind=kind, groups=1, dims=()) if is_impossible else layer


def dims_faults(place: str, layer: Layer) -> Iterator[GraphFault]:
    """Find dims that are none of the operation."""
    dims, found = layer.dims, f"the dims of this {layer.kind} are {show(layer.dims)}"
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


def groups_faults(place: str, layer: Layer) -> Iterator[GraphFault]:
    """Find groups that the layer cannot have."""
    groups, found = layer.groups, f"its groups are {show(layer.groups)}"
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


def rank_faults(place: str, layer: Layer) -> Iterator[GraphFault]:
    """Find weights of too few axes."""
    least = _LEAST_RANK.get(layer.kind, 0)
    for param in layer.params if least else ():
        if param.role == "weight" and len(param.shape) < least:
            yield GraphFault(
                place,
                f"'{param.key}' has the shape {shape_text(param.shape)}",
                f"the weight of this {layer.kind} needs {least} axes or more",
            )


def bias_faults(layer: Layer) -> Iterator[GraphFault]:
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
