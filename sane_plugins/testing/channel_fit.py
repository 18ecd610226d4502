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
    """Return the first layer whose input has another number of channels than its weight, or None."""
    from sane_plugins.weights import GraphFault, shape_text

    layers = {layer.name: layer for layer in graph.layers}
    for layer in graph.layers:
        weight = _matrix(layer)
        if weight is None:
            continue
        given, before, is_flattened = _channels_read(layers, layer)
        needed = _inputs(layer, weight)
        if not given or given == needed or (is_flattened and needed % given == 0):
            continue
        if layer.kind != "linear" and before.kind == "linear":
            continue
        if layer.kind == "linear" and before.kind != "linear" and not is_flattened:
            continue  # it may read another axis than that of the channels
        groups = f" and groups {layer.groups}" if layer.kind in _CONVOLUTIONS else ""
        return GraphFault(
            f"layer '{layer.name}'",
            f"'{weight.key}' {shape_text(weight.shape)} with axis {weight.axis}{groups} reads {needed}"
            f" channels, and layer '{before.name}' gives {given}",
            "the axis, groups and inputs that fit are needed",
        )
    return None


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
