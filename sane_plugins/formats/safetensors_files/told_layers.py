"""Layers in the metadata of a safetensors file, where names and shapes of its tensors do not tell them.

So are those of libraries that name their tensors otherwise than torch does, and store (inputs, outputs).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sane_plugins.formats.inferred_chain import INFERRED
from sane_plugins.formats.limits import require_names
from sane_plugins.formats.state_dict import NO_TOPOLOGY, layers_by_name
from sane_plugins.weights import Layer, Param, WeightGraph, find_fault

_UNTOLD = ("parameter", "unknown")  # what names and shapes make of tensors that they say nothing of
_MAX_TEXT = (
    2**22
)  # characters; what is longer is left out, so that the file stays within the limits of JSON
_SAID_BEFORE = (NO_TOPOLOGY, INFERRED, "layers come in the order of their names")


def describe_untold_layers(graph: WeightGraph) -> dict[str, Any]:
    """Return the entry `layers` of a network whose names do not tell its layers; empty where they do."""
    if graph.stored_form is not None or not _are_untold(graph):
        return {}
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "params": [[param.key, param.role, param.axis] for param in layer.params],
            "inputs": layer.inputs,
            "groups": layer.groups,
            "dims": layer.dims,
        }
        for layer in graph.layers
    ]
    return {"layers": layers} if len(json.dumps(layers)) <= _MAX_TEXT else {}


def _are_untold(graph: WeightGraph) -> bool:
    axes = {param.key: param.axis for param in graph.params}
    by_name = layers_by_name(graph.params, axes, {*graph.ties.values()})
    untold = {param.key for layer in by_name if layer.kind in _UNTOLD for param in layer.params}
    return any(
        param.key in untold and layer.kind not in _UNTOLD
        for layer in graph.layers
        for param in layer.params
    )


def with_told_layers(path: Path, graph: WeightGraph, told: Sequence[Any]) -> WeightGraph:
    """Return a file's network with the layers of its metadata; a note says where they do not fit it."""
    params = {param.key: param for param in graph.params}
    try:
        layers = tuple(_layer(record, params) for record in told)
        require_names(path, [layer.name for layer in layers])
    except (AttributeError, KeyError, TypeError, ValueError):
        layers = ()
    if {param.key for layer in layers for param in layer.params} == params.keys():
        notes = tuple(note for note in graph.notes if not note.startswith(_SAID_BEFORE))
        connected = replace(graph, layers=layers, notes=notes)
        if find_fault(connected) is None:
            return connected
    note = "the layers in its metadata do not fit its tensors: names and shapes say them"
    return replace(graph, notes=(*graph.notes, note))


def _layer(record: Mapping[str, Any], params: Mapping[str, Param]) -> Layer:
    return Layer(
        name=record["name"],
        kind=record["kind"],
        params=tuple(
            replace(params[key], role=role, axis=axis) for key, role, axis in record["params"]
        ),
        inputs=tuple(record["inputs"]),
        groups=record["groups"],
        dims=tuple(record["dims"]),
    )
