"""Read an ONNX file as a `WeightGraph`: load, inline, classify constants, build layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from onnx import GraphProto, ModelProto, NodeProto

from sane_onnx.build_layers import LayerBuilder
from sane_onnx.classify_constants import ClassifiedConstants, Uses, classify
from sane_onnx.constants import Constant
from sane_onnx.model_file import limits
from sane_onnx.model_file.external_data import ExternalFiles
from sane_onnx.model_file.inline import InlinedModel, inline_model
from sane_onnx.model_file.proto import STANDARD, invalid_model, load
from sane_plugins.errors import SourceError
from sane_plugins.weights import Layer, WeightGraph

_MATRICES = ("Conv", "ConvTranspose", "Gemm")
_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")


class OnnxTensors(Mapping[str, torch.Tensor]):
    """Tensors of one model, each read when it is looked up; `model` is kept for writing."""

    def __init__(
        self, model: ModelProto, files: ExternalFiles, constants: Mapping[str, Constant]
    ) -> None:
        self.model, self.files, self._constants = model, files, constants

    @property
    def files_read(self) -> tuple[Path, ...]:
        """Return the files of values beside the model."""
        return self.files.paths

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._constants[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._constants)

    def __len__(self) -> int:
        return len(self._constants)


def read(path: Path) -> WeightGraph:
    """Read an ONNX file and its external data. Nothing in it is run.

    Every floating-point or quantised tensor is a param of a layer, except tensors that parametrise
    operators, such as the limits of Clip; all others are named in `untouched`. Raises `SourceError`
    for a file that is no ONNX model, is broken, holds no weights, or names other files than it may.
    """
    model = load(path)
    files = ExternalFiles(path)
    try:
        inlined = inline_model(model, files, path)
        uses = Uses.of(inlined)
        classified = classify(inlined, uses)
        _note_training_tensors(model, classified)
        _require_few_weights(path, len(classified.params), inlined.file_bytes + files.nbytes)
        if not classified.params:
            raise _no_weights_error(path, classified.untouched)
        layers = LayerBuilder(path, model, inlined, uses, classified).build()
        notes = tuple(_notes(inlined, classified, layers))
    except (ValueError, RecursionError, OverflowError) as error:
        raise invalid_model(path, str(error)) from error
    readable = {key: x for key, x in classified.constants.items() if _has_torch_dtype(x)}
    return WeightGraph(
        source=str(path),
        layers=layers,
        tensors=OnnxTensors(model, files, readable),
        untouched=classified.untouched,
        missed=classified.missed,
        converted=classified.converted,
        notes=notes,
        container="onnx",
    )


def _require_few_weights(path: Path, count: int, nbytes: int) -> None:
    """Raise `SourceError` where there are more weights than in a network whose files have `nbytes`."""
    most = limits.allowance(limits.WEIGHTS, nbytes)
    if count > most:
        found = f"it has {count} weights in {nbytes} bytes"
        raise limits.too_many(path, found, f"at most {most} are read of so many bytes")


def _has_torch_dtype(constant: Constant) -> bool:
    """Return whether torch has the constant's type; it lacks strings, for example."""
    return constant.dtype is not None


def _note_training_tensors(model: ModelProto, classified: ClassifiedConstants) -> None:
    """List the tensors of `training_info` as untouched."""
    for i, training in enumerate(model.training_info):
        graphs: list[GraphProto] = [training.initialization, training.algorithm]
        for tensor in [tensor for graph in graphs for tensor in graph.initializer]:
            classified.untouched[f"training{i}/{tensor.name}"] = "used for training only"


def _notes(
    inlined: InlinedModel, classified: ClassifiedConstants, layers: tuple[Layer, ...]
) -> Iterator[str]:
    nodes = [node for node in inlined.nodes if node.domain in STANDARD]
    for node in nodes:
        factors = {a.name: a.f for a in node.attribute if a.name in ("alpha", "beta") and a.f != 1}
        if node.op_type == "Gemm" and factors:
            text = " and ".join(f"{name} {value:g}" for name, value in factors.items())
            for key in node.input[1:3]:
                if key in classified.params:
                    classified.converted[key] = f"as stored: Gemm multiplies by {text}"
    used = {key for layer in layers if layer.kind != "parameter" for key in _param_keys(layer)}
    matrices = [node for node in nodes if node.op_type in _MATRICES]
    from_weights = _downstream(inlined, used)
    if computed := [x for x in matrices if not from_weights.intersection(x.input[1:2])]:
        yield f"{len(computed)} layer(s) compute their weights, of which only stored numbers are read"
    readers = {name: node.op_type for node in nodes for name in node.input[:1]}
    convs = [node for node in matrices if node.op_type == "Conv" and len(node.input) > 2]
    if unnormalized := [node for node in convs if readers.get(node.output[0]) not in _NORMS]:
        yield (
            f"{len(unnormalized)} convolution(s) have a bias and no norm: where a batch norm was folded into"
            " them on export, it is part of their weights"
        )


def _param_keys(layer: Layer) -> Iterator[str]:
    return (param.key for param in layer.params)


def _downstream(inlined: InlinedModel, names: set[str]) -> set[str]:
    """Return these values and all values computed from them."""
    readers: dict[str, list[NodeProto]] = {}
    for node in inlined.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    reached, pending = set(names), list(names)
    while pending:
        new = {x for node in readers.pop(pending.pop(), ()) for x in node.output if x} - reached
        reached |= new
        pending += new
    return reached


def _no_weights_error(path: Path, untouched: Mapping[str, str]) -> SourceError:
    key, reason = next(iter(untouched.items()), ("", ""))
    found = f", only {len(untouched)} other tensor(s) ({key!r}: {reason})" if untouched else ""
    return SourceError(
        path,
        f"it holds no weights{found}",
        "a network needs at least one",
        "export the network with its weights",
    )
