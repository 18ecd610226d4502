"""From an ONNX file to a network: what is a weight, what is left out and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from onnx import GraphProto, ModelProto, NodeProto

from sane_onnx.build_layers import LayerReader
from sane_onnx.classify_constants import Owned, Uses, sort
from sane_onnx.constants import Source
from sane_onnx.external_data import ExternalFiles
from sane_onnx.inline import Flat, flatten
from sane_onnx.proto import STANDARD, load, no_model
from sane_plugins.errors import SourceError
from sane_plugins.weights import Layer, WeightGraph

_MATRICES = ("Conv", "ConvTranspose", "Gemm")
_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")


class OnnxTensors(Mapping[str, torch.Tensor]):
    """The tensors of one model, read when they are asked for. Keeps the model to write it back."""

    def __init__(
        self, model: ModelProto, files: ExternalFiles, found: Mapping[str, Source]
    ) -> None:
        self.model, self.files, self._found = model, files, found

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._found[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def read(path: Path) -> WeightGraph:
    """Read an ONNX file and, where it keeps values beside itself, those. Nothing in it is run.

    Every floating-point or quantised tensor is owned by a layer, save the numbers that set how
    operators work; all others are named in `untouched`. Raises `SourceError` for a file that is no
    ONNX model, is broken, holds no weights, or names other files than it may.
    """
    model = load(path)
    files = ExternalFiles(path)
    try:
        flat = flatten(model, files, path)
        uses = Uses.of(flat)
        owned = sort(flat, uses)
        _leave_training(model, owned)
        if not owned.params:
            raise _empty(path, owned.untouched)
        layers = LayerReader(path, model, flat, uses, owned).read()
        notes = tuple(_notes(flat, owned, layers))
    except (ValueError, RecursionError, OverflowError) as error:
        raise no_model(path, str(error)) from error
    readable = {key: source for key, source in owned.sources.items() if _is_readable(source)}
    return WeightGraph(
        source=str(path),
        layers=layers,
        tensors=OnnxTensors(model, files, readable),
        untouched=owned.untouched,
        missed=owned.missed,
        converted=owned.converted,
        notes=notes,
        container="onnx",
    )


def _is_readable(source: Source) -> bool:
    """Tell whether torch has this type; strings it has not."""
    return source.dtype is not None


def _leave_training(model: ModelProto, owned: Owned) -> None:
    """Name the tensors of the training part, which no inference uses."""
    for i, training in enumerate(model.training_info):
        graphs: list[GraphProto] = [training.initialization, training.algorithm]
        for tensor in [tensor for graph in graphs for tensor in graph.initializer]:
            owned.untouched[f"training{i}/{tensor.name}"] = "used for training only"


def _notes(flat: Flat, owned: Owned, layers: tuple[Layer, ...]) -> Iterator[str]:
    nodes = [node for node in flat.nodes if node.domain in STANDARD]
    for node in nodes:
        factors = {a.name: a.f for a in node.attribute if a.name in ("alpha", "beta") and a.f != 1}
        if node.op_type == "Gemm" and factors:
            told = " and ".join(f"{name} {value:g}" for name, value in factors.items())
            for key in node.input[1:3]:
                if key in owned.params:
                    owned.converted[key] = f"as stored: Gemm multiplies by {told}"
    weighted = {key for layer in layers if layer.kind != "parameter" for key in _keys(layer)}
    matrices = [node for node in nodes if node.op_type in _MATRICES]
    ahead = _ahead(flat, weighted)
    if computed := [x for x in matrices if not ahead.intersection(x.input[1:2])]:
        yield f"{len(computed)} layer(s) compute their weights, of which only stored numbers are read"
    readers = {name: node.op_type for node in nodes for name in node.input[:1]}
    convs = [node for node in matrices if node.op_type == "Conv" and len(node.input) > 2]
    if bare := [node for node in convs if readers.get(node.output[0]) not in _NORMS]:
        yield (
            f"{len(bare)} convolution(s) have a bias and no norm: where a batch norm was folded into"
            " them on export, it is part of their weights"
        )


def _keys(layer: Layer) -> Iterator[str]:
    return (param.key for param in layer.params)


def _ahead(flat: Flat, names: set[str]) -> set[str]:
    """Return these values and all that is computed from them."""
    readers: dict[str, list[NodeProto]] = {}
    for node in flat.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found, open_ = set(names), list(names)
    while open_:
        fresh = {x for node in readers.pop(open_.pop(), ()) for x in node.output if x} - found
        found |= fresh
        open_ += fresh
    return found


def _empty(path: Path, untouched: Mapping[str, str]) -> SourceError:
    key, reason = next(iter(untouched.items()), ("", ""))
    found = f", only {len(untouched)} other tensor(s) ({key!r}: {reason})" if untouched else ""
    return SourceError(
        path,
        f"it holds no weights{found}",
        "a network needs at least one",
        "export the network with its weights",
    )
