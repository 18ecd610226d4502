"""A network back into the ONNX model that it came from."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from sane_onnx.model import constants
from sane_onnx.tensors import OnnxTensors, assign
from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.writing import write_whole


def write(graph: WeightGraph, target: Path) -> Path:
    """Write the model with the graph's tensors: same nodes, same names, same types.

    Only tensors that were exchanged are written anew. Raises `SourceError` where the graph did not
    come from an ONNX file, and where the file cannot be written.
    """
    origin = next((m for m in _layers(graph.tensors) if isinstance(m, OnnxTensors)), None)
    if graph.container != "onnx" or origin is None:
        raise SourceError(
            target, f"{graph.source} did not come from an ONNX file",
            "weights alone do not say how to compute", "export the module with torch.onnx.export",
        )  # fmt: skip
    model = ModelProto()
    model.CopyFrom(origin.model)
    places = constants(model.graph)
    for param in graph.params:
        if any(param.key in m for m in _layers(graph.tensors) if m is not origin):
            assign(places[param.key], graph.tensors[param.key])
    return _written(model, target)


def _layers(tensors: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Yield the plain mappings that replacing has laid over each other, the uppermost first."""
    if isinstance(tensors, ChainMap):
        for part in tensors.maps:
            yield from _layers(part)
    else:
        yield tensors


def _written(model: ModelProto, target: Path) -> Path:
    try:
        return write_whole(
            target, lambda partial: onnx.save_model(model, partial, format="protobuf")
        )
    except (EncodeError, ValueError) as error:
        raise SourceError(
            target, f"it cannot be written ({error})", "a model that protobuf can hold is needed",
            "check that it is below 2 GiB",
        ) from error  # fmt: skip
