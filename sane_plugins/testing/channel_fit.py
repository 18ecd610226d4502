"""Whether the channels that a layer reads are those that the one before it gives, where that is certain.

Hosts do not ask for it: they leave what does not fit where it is. A reader that says an axis, a group or
an input wrongly is found by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sane_plugins.weights import GraphFault, Layer, Param, WeightGraph

_CONVOLUTIONS = ("conv", "transposed_conv")
_MATRIX_KINDS = (*_CONVOLUTIONS, "linear")


def find_misfit(graph: WeightGraph) -> GraphFault | None:
    """Return the first layer whose weights do not fit its kind, or the channels that it reads, or None."""
    layers = {layer.name: layer for layer in graph.layers}
    for layer in graph.layers:
        fault = _rank_misfit(layer) or _norm_misfit(layers, layer) or _matrix_misfit(layers, layer)
        if fault is not None:
            return fault
    return None


def _rank_misfit(layer: Layer) -> GraphFault | None:
    from sane_plugins.weights import GraphFault, shape_text

    for param in layer.params:
        is_wide = layer.kind in ("linear", "embedding") and param.role == "weight"
        if is_wide and len(param.shape) != 2:
            found = f"'{param.key}' has the shape {shape_text(param.shape)}"
            needed = f"two axes are needed for the weight of this {layer.kind}"
            return GraphFault(f"layer '{layer.name}'", found, needed)
    return None


def _norm_misfit(layers: dict[str, Layer], layer: Layer) -> GraphFault | None:
    """Return a norm along the channels whose vectors have another size than there are channels."""
    from sane_plugins.weights import GraphFault, shape_text

    if layer.kind != "norm" or len(layer.inputs) != 1:
        return None
    given, before, is_flattened = _channels_read(layers, layer)
    weight = _matrix(before)
    if not given or weight is None or is_flattened:
        return None
    last = -1 if before.kind == "linear" else 1 - len(weight.shape)
    for param in layer.params:
        is_vector = len(param.shape) == 1 and param.shape[0] > 1
        if is_vector and layer.dims in ((), (1,), (last,)) and param.shape[0] != given:
            return GraphFault(
                f"layer '{layer.name}'",
                f"'{param.key}' has the shape {shape_text(param.shape)}, and layer '{before.name}'"
                f" gives {given} channels",
                "one value for each channel is needed",
            )
    return None


def _matrix_misfit(layers: dict[str, Layer], layer: Layer) -> GraphFault | None:
    from sane_plugins.weights import GraphFault, shape_text

    weight = _matrix(layer)
    if weight is None:
        return None
    given, before, is_flattened = _channels_read(layers, layer)
    needed = _inputs(layer, weight)
    if not given or given == needed or (is_flattened and needed % given == 0):
        return None
    if layer.kind != "linear" and before.kind == "linear":
        return None
    if layer.kind == "linear" and before.kind != "linear" and not is_flattened:
        return None  # it may read another axis than that of the channels
    groups = f" and groups {layer.groups}" if layer.kind in _CONVOLUTIONS else ""
    return GraphFault(
        f"layer '{layer.name}'",
        f"'{weight.key}' {shape_text(weight.shape)} with axis {weight.axis}{groups} reads {needed}"
        f" channels, and layer '{before.name}' gives {given}",
        "the axis, groups and inputs that fit are needed",
    )


def _matrix(layer: Layer) -> Param | None:
    """Return the only matrix of a layer that reads channels; None where there is none, or several."""
    matrices = [param for param in layer.params if len(param.shape) > 1]
    rank = 2 if layer.kind == "linear" else 3
    is_plain = layer.kind in _MATRIX_KINDS and len(matrices) == 1 and len(layer.inputs) == 1
    return matrices[0] if is_plain and len(matrices[0].shape) >= rank else None


def _outputs(layer: Layer, weight: Param) -> int:
    is_transposed = layer.kind == "transposed_conv" and weight.axis
    return weight.shape[weight.axis] * (layer.groups if is_transposed else 1)


def _inputs(layer: Layer, weight: Param) -> int:
    """Return how many channels a weight reads: its first two axes are outputs and inputs, in some order."""
    axis = 1 - min(weight.axis, 1)
    return weight.shape[axis] * (1 if layer.kind == "transposed_conv" else layer.groups)


def _channels_read(layers: dict[str, Layer], layer: Layer) -> tuple[int, Layer, bool]:
    """Return how many channels come to a layer, from which, and whether flattened; 0 where unknown."""
    before, is_flattened = layers[layer.inputs[0]], False
    while before.kind in ("pointwise", "norm", "flatten") and len(before.inputs) == 1:
        is_flattened |= before.kind == "flatten"
        before = layers[before.inputs[0]]
    weight = _matrix(before)
    outputs = 0 if weight is None else _outputs(before, weight)
    return (outputs if outputs > 1 else 0), before, is_flattened
