"""From an ONNX file to a network: what is a weight, what is left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from onnx import ModelProto, NodeProto

from sane_onnx.layers import LayerReader, aliases
from sane_onnx.model import STANDARD, Inner, constants, inner_tensors, load, no_model
from sane_onnx.owned import QUANTISED, Owned, Uses, sort
from sane_onnx.tensors import OnnxTensors, has_torch_type
from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import WeightGraph

_MATRICES = ("Conv", "ConvTranspose", "Gemm")


def read(path: Path) -> WeightGraph:
    """Read an ONNX file. Nothing in it is run, and no other file is read.

    Every floating-point tensor of the main graph is owned by a layer, save the numbers that set how
    operators work; all others are named in `untouched`. Raises `SourceError` for a file that is no
    ONNX model, is broken, holds no weights in its main graph or keeps values in other files.
    """
    model = load(path)
    found, uses = constants(model.graph), Uses.of(model.graph)
    owned = sort(found, {tensor.name for tensor in model.graph.initializer}, uses, str(path))
    inner = _named(inner_tensors(model), set(found))
    untouched = {**owned.untouched, **{key: x.reason for key, x in inner.items()}}
    if not owned.params:
        raise _empty(path, untouched)
    try:
        layers = LayerReader(path, model, uses, owned).read()
        notes = tuple(_notes(model, owned, inner.values()))
    except ValueError as error:
        raise no_model(path, str(error)) from error
    tensors = found | {key: x.tensor for key, x in inner.items() if x.tensor is not None}
    readable = {key: tensor for key, tensor in tensors.items() if has_torch_type(tensor)}
    return WeightGraph(
        source=str(path), layers=layers, tensors=OnnxTensors(model, readable, str(path)),
        untouched=untouched, notes=notes,
        container="onnx",
    )  # fmt: skip


def _named(inner: Iterable[Inner], taken: set[str]) -> dict[str, Inner]:
    """Return the tensors by keys of their own, whatever their places are called."""
    found: dict[str, Inner] = {}
    for item in inner:
        key = item.key
        while key in taken or key in found:
            key += "'"
        found[key] = item
    return found


def _notes(model: ModelProto, owned: Owned, inner: Iterable[Inner]) -> Iterator[str]:
    reasons = [item.reason for item in inner]
    reasons += [reason for reason in owned.untouched.values() if reason.startswith(QUANTISED)]
    for reason in dict.fromkeys(reasons):
        yield f"{reasons.count(reason)} tensor(s) left out: {reason}"
    nodes = [node for node in model.graph.node if node.domain in STANDARD]
    if scaled := [node for node in nodes if node.op_type == "Gemm" and _is_scaled(node)]:
        yield f"{len(scaled)} Gemm layer(s) scale their weights, which are read as stored"
    stored = set(aliases(model.graph.node, owned.params))
    if computed := [x for x in nodes if x.op_type in _MATRICES and not stored & {*x.input[1:2]}]:
        yield f"{len(computed)} layer(s) compute their weights, of which only stored numbers are read"


def _is_scaled(node: NodeProto) -> bool:
    return any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute)


def _empty(path: Path, untouched: Mapping[str, str]) -> SourceError:
    key, reason = next(iter(untouched.items()), ("", ""))
    found = f", only {len(untouched)} other tensor(s) ({key!r}: {reason})" if untouched else ""
    return SourceError(
        path, f"it holds no floating-point weights in its main graph{found}",
        "a network needs at least one", "export the network with its weights in floating point",
    )  # fmt: skip
