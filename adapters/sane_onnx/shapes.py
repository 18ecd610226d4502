"""The shapes of a model's values, inferred without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    shape_inference,
)

from sane_onnx.model import constant_value, subgraphs
from sane_onnx.tensors import FLOATS

Shape = tuple[int | None, ...]
# Integers of this many values and fewer may be shapes, which inference follows.
_FEW = 1024


def infer(
    model: ModelProto, nodes: Iterable[NodeProto], constants: Mapping[str, TensorProto]
) -> dict[str, Shape]:
    """Return the shape of every value whose rank is known; None stands for an unknown size.

    Shapes that the file itself claims are not believed, except those of its inputs.
    """
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.input.extend(x for x in model.graph.input if x.name not in constants)
    for name, tensor in constants.items():
        if tensor.data_type in FLOATS or sum(tensor.dims) > _FEW:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
    for node in nodes:
        if constant_value(node) is None and not list(subgraphs(node)):
            graph.node.append(node)
    graph.output.extend(ValueInfoProto(name=x.name) for x in model.graph.output)
    return _inferred(skeleton)


def _inferred(skeleton: ModelProto) -> dict[str, Shape]:
    try:
        graph = shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except (
        shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError, TypeError,
    ):  # fmt: skip
        graph = skeleton.graph  # then only what needs no shape is understood
    return _shapes(graph)


def _shapes(graph: GraphProto) -> dict[str, Shape]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            )
    return found
