"""Load and validate an ONNX file as a `ModelProto`; node queries that onnx lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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

from sane_onnx.model_file import limits
from sane_onnx.model_file.wire import require_few_parts
from sane_plugins.errors import SourceError
from sane_plugins.formats import require_file

STANDARD = ("", "ai.onnx")
MICROSOFT = "com.microsoft"
# Domain of operators whose weights are padded and reordered for one kind of processor.
_BLOCKED_LAYOUT = "com.microsoft.nchwc"
_NUMBER_ATTRIBUTES = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}


def load(path: Path) -> ModelProto:
    """Load a model file without its external data.

    Raises `SourceError` where it is no ONNX model, broken, or made for one kind of hardware.
    """
    model = _parse(require_file(path))
    for part in (model.graph, *model.functions):
        _require_names(path, part)
    _require_usable(path, model)
    return model


def constant_value(node: NodeProto) -> AttributeProto | None:
    """Return the attribute of a Constant node that holds its values."""
    if node.op_type != "Constant" or node.domain not in STANDARD or not node.output:
        return None
    kinds = (AttributeProto.TENSOR, AttributeProto.SPARSE_TENSOR)
    return next((a for a in node.attribute if a.type in kinds), None)


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield a node's subgraphs (branches, loop bodies) with the names of their attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for i, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}{i}", graph


def invalid_model(path: Path, reason: str) -> SourceError:
    """Return the error for a file that is not an ONNX model, or a damaged one."""
    return SourceError(
        path,
        f"it is no usable ONNX model ({' '.join(reason.split())})",
        "a whole one is needed",
        "check the file, or export the network again",
    )


def _parse(path: Path) -> ModelProto:
    try:
        if path.stat().st_size > limits.FILE_BYTES:
            raise invalid_model(path, "it is larger than 2 GiB, without the files beside it")
        data = path.read_bytes()
        require_few_parts(path, data)
        model = onnx.load_model_from_string(data, format="protobuf")
        for part in (model.graph, *model.functions):
            _constants_to_tensors(part)
    except (DecodeError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise invalid_model(path, str(error)) from error
    return model


def _constants_to_tensors(graph: GraphProto | FunctionProto) -> None:
    """Turn `value_float`, `value_ints`, ... of Constant nodes into the equivalent tensor `value`."""
    for node in graph.node:
        for _, inner in subgraphs(node):
            _constants_to_tensors(inner)
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            if attribute.name in _NUMBER_ATTRIBUTES and not attribute.ref_attr_name:
                _to_tensor(attribute)


def _to_tensor(attribute: AttributeProto) -> None:
    value = helper.get_attribute_value(attribute)
    shape = [len(value)] if attribute.name.endswith("s") else []
    tensor = helper.make_tensor(
        "", _NUMBER_ATTRIBUTES[attribute.name], shape, value if shape else [value]
    )
    attribute.CopyFrom(helper.make_attribute("value", tensor))


def _require_names(path: Path, graph: GraphProto | FunctionProto) -> None:
    """Raise `SourceError` for a name that is too long, or no UTF-8; the parser leaves such as bytes."""
    names: list[object] = [value for node in graph.node for value in (*node.input, *node.output)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *(a.name for a in node.attribute)]
        names += [x for a in node.attribute for x in (a.t.name, a.ref_attr_name)]
    if isinstance(graph, GraphProto):
        names += [x.name for x in (*graph.input, *graph.output, *graph.initializer)]
        names += [x.values.name for x in graph.sparse_initializer]
    else:
        names += [graph.name, graph.domain, *graph.input, *graph.output, *graph.attribute]
    for name in names:
        if not isinstance(name, str):
            raise invalid_model(path, "a name in it is no text")
        if len(name) > limits.NAME:
            found = f"a name in it has {len(name)} characters"
            raise limits.too_many(path, found, f"names of at most {limits.NAME} are read")
    for node in graph.node:
        for _, inner in subgraphs(node):
            _require_names(path, inner)


def _require_usable(path: Path, model: ModelProto) -> None:
    graph, versions = model.graph, {x.domain for x in model.opset_import}
    if not (graph.node or graph.initializer or graph.sparse_initializer):
        raise invalid_model(path, "it holds neither nodes nor weights")
    if not versions.intersection(STANDARD) and any(n.domain in STANDARD for n in graph.node):
        raise invalid_model(path, "it names no operator set")
    if any(node.domain == _BLOCKED_LAYOUT for node in graph.node):
        raise SourceError(
            path,
            "it is optimised for one kind of processor, with reordered weights",
            "weights in their own order are needed",
            "save it at ORT_ENABLE_BASIC or export it again",
        )
    require_unique(path, graph)


def require_unique(path: Path, graph: GraphProto) -> None:
    """Raise `SourceError` where a graph gives one name to several values."""
    names = [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    names += {value.name for value in graph.input}.difference(names)  # a default is an input too
    # Of constants of one name the last one counts, as in onnxruntime.
    names += {n.output[0] for n in graph.node if constant_value(n) is not None}.difference(names)
    made = (node for node in graph.node if constant_value(node) is None)
    names += [name for node in made for name in node.output if name]
    for name, count in Counter(names).items():
        if not name or count > 1:
            raise invalid_model(path, f"the name {name!r} is given to {count} values")
