"""An ONNX file as a model that is safe to look at, and every tensor in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
)

from sane_plugins.errors import SourceError
from sane_plugins.weights.files import require_file

STANDARD = ("", "ai.onnx")
# Its weights are padded and reordered for one kind of processor.
_HARDWARE = "com.microsoft.nchwc"
_LISTS = {
    "value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64, "value_ints": TensorProto.INT64,
}  # fmt: skip


@dataclass(frozen=True)
class Inner:
    """A tensor that is no plain constant of the main graph: where, why it is not read, and itself."""

    key: str
    reason: str
    tensor: TensorProto | None


def load(path: Path) -> ModelProto:
    """Read a model file, and nothing that it names.

    Raises `SourceError` where it is no ONNX model, broken, made for one kind of hardware, or where
    it keeps values in other files.
    """
    model = _parsed(require_file(path))
    if not all(_is_text(graph) for graph in (model.graph, *model.functions)):
        raise no_model(path, "a name in it is no text")
    _require_usable(path, model)
    inner = list(inner_tensors(model))
    for tensor in [*constants(model.graph).values(), *(x.tensor for x in inner if x.tensor)]:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise SourceError(
                f"{path}, {tensor.name!r}", "its values lie in another file",
                "this version reads values inside the model file only",
                "where you trust it, convert it with onnx.save(onnx.load(path), other_path)",
            )  # fmt: skip
    return model


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the initializers and the tensors of Constant nodes, by the value that they give."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if (attribute := constant_value(node)) is not None:
            found[node.output[0]] = attribute.t
    return found


def constant_value(node: NodeProto) -> AttributeProto | None:
    """Return the attribute of a Constant node that holds a tensor."""
    if node.op_type != "Constant" or node.domain not in STANDARD or not node.output:
        return None
    return next((a for a in node.attribute if a.type == AttributeProto.TENSOR), None)


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield the graphs inside a node (branches, loop bodies) with the names of their attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for i, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}{i}", graph


def inner_tensors(model: ModelProto) -> Iterator[Inner]:
    """Yield every tensor that this version does not read, each with the reason."""
    yield from _around(model.graph.node, "", "inside a sub-graph, not read by this version")
    yield from _sparse(model.graph, "")
    for function in model.functions:
        place = f"{function.domain}.{function.name}/"
        yield from _of_nodes(function.node, place, "inside a function, not read by this version")
    for training in model.training_info:
        for part in (training.initialization, training.algorithm):
            yield from _of_graph(part, "training/", "used for training only")


def _parsed(path: Path) -> ModelProto:
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
        for node in model.graph.node:
            _unify(node)
    except (DecodeError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise no_model(path, str(error)) from error
    return model


def _unify(node: NodeProto) -> None:
    """Turn a Constant node's plain numbers into a tensor, which means the same."""
    if node.op_type != "Constant":
        return
    for attribute in node.attribute:
        if (kind := _LISTS.get(attribute.name)) is not None:
            value = helper.get_attribute_value(attribute)
            shape = [len(value)] if attribute.name.endswith("s") else []
            tensor = helper.make_tensor("", kind, shape, value if shape else [value])
            attribute.CopyFrom(helper.make_attribute("value", tensor))


def _is_text(graph: GraphProto | FunctionProto) -> bool:
    """Tell whether all names are text; the parser leaves others as bytes."""
    names: list[object] = [value for node in graph.node for value in (*node.input, *node.output)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *(a.name for a in node.attribute)]
        names += [a.t.name for a in node.attribute]
    if isinstance(graph, GraphProto):
        names += [x.name for x in (*graph.input, *graph.output, *graph.initializer)]
        names += [x.values.name for x in graph.sparse_initializer]
    inner = (part for node in graph.node for _, part in subgraphs(node))
    return all(isinstance(name, str) for name in names) and all(map(_is_text, inner))


def _require_usable(path: Path, model: ModelProto) -> None:
    graph, versions = model.graph, {x.domain for x in model.opset_import}
    if not (graph.node or graph.initializer):
        raise no_model(path, "it holds neither nodes nor weights")
    if not versions.intersection(STANDARD) and any(n.domain in STANDARD for n in graph.node):
        raise no_model(path, "it names no operator set")
    if any(node.domain == _HARDWARE for node in graph.node):
        raise SourceError(
            path, "it is optimised for one kind of processor, with reordered weights",
            "weights in their own order are needed", "save it at ORT_ENABLE_BASIC or export it again",
        )  # fmt: skip
    names = [tensor.name for tensor in graph.initializer]
    names += {value.name for value in graph.input}.difference(names)  # a default is an input too
    names += [name for node in graph.node for name in node.output if name]
    for name, count in Counter(names).items():
        if not name or count > 1:
            raise no_model(path, f"the name {name!r} is given to {count} values")


def _around(nodes: Sequence[NodeProto], place: str, reason: str) -> Iterator[Inner]:
    """Yield what lies in the graphs and in the tensor attributes of nodes."""
    for i, node in enumerate(nodes):
        here = f"{place}{node.name or node.output[0] if node.output else i}/"
        for name, graph in subgraphs(node):
            yield from _of_graph(graph, f"{here}{name}/", reason)
        if constant_value(node) is None:
            yield from _attributes(node, here)


def _of_graph(graph: GraphProto, place: str, reason: str) -> Iterator[Inner]:
    for tensor in graph.initializer:
        yield Inner(place + tensor.name, reason, tensor)
    yield from _sparse(graph, place)
    yield from _of_nodes(graph.node, place, reason)


def _of_nodes(nodes: Sequence[NodeProto], place: str, reason: str) -> Iterator[Inner]:
    for node in nodes:
        if (attribute := constant_value(node)) is not None:
            yield Inner(place + node.output[0], reason, attribute.t)
    yield from _around(nodes, place, reason)


def _sparse(graph: GraphProto, place: str) -> Iterator[Inner]:
    for sparse in graph.sparse_initializer:
        yield Inner(place + sparse.values.name, "sparse, not read by this version", sparse.values)
        yield Inner(
            place + sparse.values.name + "/indices", "places of sparse values", sparse.indices
        )


def _attributes(node: NodeProto, place: str) -> Iterator[Inner]:
    """Yield the tensors and lists of numbers that a node holds itself."""
    reason = f"an attribute of {node.op_type}, not read by this version"
    for attribute in node.attribute:
        key = place + attribute.name
        if attribute.type == AttributeProto.TENSOR:
            yield Inner(key, reason, attribute.t)
        elif attribute.type == AttributeProto.SPARSE_TENSOR:
            yield Inner(key, reason, attribute.sparse_tensor.values)
            yield Inner(key + "/indices", reason, attribute.sparse_tensor.indices)
        elif attribute.floats:
            yield Inner(key, reason, None)
        for tensor in attribute.tensors:
            yield Inner(key, reason, tensor)


def no_model(path: Path, found: str) -> SourceError:
    """Return the error for a file that is no ONNX model or a damaged one."""
    return SourceError(
        path, f"it is no usable ONNX model ({' '.join(found.split())})", "a whole one is needed",
        "check the file, or export the network again",
    )  # fmt: skip
