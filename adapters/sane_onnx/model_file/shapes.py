"""Shape inference on a skeleton of the model that has no weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

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

from sane_onnx.constants import Constant
from sane_onnx.model_file.inline import InlinedModel
from sane_onnx.model_file.limits import INFERRED_SIZES
from sane_onnx.model_file.shape_growth import Growth, bound_growth
from sane_onnx.tensors import FLOATS, StoredTensor
from sane_plugins.weights import MAX_AXES

Shape = tuple[int | None, ...]
# Integer tensors up to this size may hold shapes, whose values inference propagates.
_MAX_SHAPE_VALUES = 1024
_MAX_TYPE_BYTES = 2_000
_SCALED = ("Resize", "Upsample")  # by factors that are no integers
_ONNX_TYPES = {dtype: kind for kind, dtype in FLOATS.items()}


def infer_shapes(
    model: ModelProto,
    inlined: InlinedModel,
    nodes: Iterable[NodeProto],
    computed: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Shape]:
    """Return the shape of every value whose rank is known; None stands for an unknown size.

    Shapes stated in the file are not trusted, except those of its inputs. `computed` are lists of integers
    that nodes compute, and that are known.
    """
    shapes = _shapes(infer_graph(model, inlined, nodes, computed or {}))
    return {**shapes, **{name: x.shape for name, x in inlined.constants.items()}}


def infer_graph(
    model: ModelProto,
    inlined: InlinedModel,
    nodes: Iterable[NodeProto],
    known: Mapping[str, Sequence[int]],
) -> GraphProto:
    """Return a graph whose values have the types and shapes that inference works out; see `infer_shapes`."""
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = "skeleton"
    for name, value in inlined.inputs.items():
        # Names of sizes are copied from value to value.
        if value.HasField("type") and value.type.ByteSize() <= _MAX_TYPE_BYTES:
            graph.input.append(value)
            graph.input[-1].name = name
    nodes = [*nodes]
    scales = {name for node in nodes for name in node.input[1:] if node.op_type in _SCALED}
    for name, constant in inlined.constants.items():
        _declare(graph, name, constant, has_values=name in scales)
    for name, values in known.items():
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    hidden = inlined.with_subgraphs.union(known)
    graph.node.extend(n for n in nodes if not hidden.intersection(n.output[:1]))
    graph.output.extend(ValueInfoProto(name=name) for name in inlined.outputs)
    return _infer_skeleton(skeleton)


def _declare(graph: GraphProto, name: str, constant: Constant, has_values: bool) -> None:
    """Add a constant to the skeleton: a weight by its shape, a short list of integers with its values.

    `has_values`: its values decide a shape, whatever their type.
    """
    if isinstance(constant, StoredTensor) and (
        (constant.dtype not in _ONNX_TYPES and constant.size <= _MAX_SHAPE_VALUES)
        or (has_values and constant.size <= MAX_AXES)
    ):
        tensor = constant.tensor
        is_list = constant.dtype is not None and not constant.dtype.is_floating_point
        if is_list or has_values:
            graph.initializer.add(
                name=name,
                data_type=tensor.data_type,
                dims=constant.shape,
                raw_data=bytes(constant.data()),
            )
            return
    kind = (
        constant.tensor.data_type
        if isinstance(constant, StoredTensor)
        else _ONNX_TYPES.get(constant.dtype)  # type: ignore[arg-type]
    )
    if kind is not None:
        graph.input.append(helper.make_tensor_value_info(name, kind, constant.shape))


def value_kinds(graph: GraphProto) -> dict[str, int]:
    """Return ONNX's number of the type of each value's elements, where it is known."""
    values = [*graph.input, *graph.value_info, *graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: kind for name, kind in kinds.items() if kind}


def _infer_skeleton(skeleton: ModelProto) -> GraphProto:
    graph = skeleton.graph
    growth = _bound_growth(graph)
    if growth.axes <= INFERRED_SIZES:
        graph = _infer(skeleton, data_propagation=False)
        # Values are propagated one by one: lists longer than any real shape would exhaust memory.
        is_short = not any(map(_is_long_list, [*graph.input, *graph.value_info]))
        if is_short and growth.listed <= INFERRED_SIZES:
            graph = _infer(skeleton, data_propagation=True)
    return graph


def _bound_growth(graph: GraphProto) -> Growth:
    """Return bounds on what inference would work out for a skeleton."""
    shapes = _shapes(graph)
    lists = [x.name for x in graph.input if _is_list(x)]
    lists += [x.name for x in graph.initializer if len(x.dims) == 1]
    numbers = {
        x.name: int.from_bytes(x.raw_data, sys.byteorder, signed=True)
        for x in graph.initializer
        if [*x.dims] == [1]
    }
    lengths = {name: max(shapes[name][0] or 0, 0) for name in lists}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    return bound_growth(graph.node, ranks, lengths, numbers, INFERRED_SIZES)


def _infer(skeleton: ModelProto, data_propagation: bool) -> GraphProto:
    """Run onnx's shape inference; return the graph unchanged where that fails."""
    try:
        return shape_inference.infer_shapes(skeleton, data_prop=data_propagation).graph
    except (
        shape_inference.InferenceError,
        checker.ValidationError,
        RuntimeError,
        ValueError,
        TypeError,
        MemoryError,
    ):
        return skeleton.graph  # only operators that need no shapes are then understood


def _is_list(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type in (TensorProto.INT32, TensorProto.INT64) and len(kind.shape.dim) == 1


def _is_long_list(value: ValueInfoProto) -> bool:
    size = value.type.tensor_type.shape.dim[0].dim_value if _is_list(value) else 0
    return not 0 <= size <= _MAX_SHAPE_VALUES


def _shapes(graph: GraphProto) -> dict[str, Shape]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            )
    return shapes
