"""Damage to an ONNX model that stays well-formed protobuf: tensors, nodes, graphs in graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from fuzzing.case import NAMES, NUMBERS, Case, Mutation

_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "BatchNormalization", "LSTM", "GRU", "RNN",
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Gather", "Transpose", "Reshape",
    "Unsqueeze", "Squeeze", "Concat", "Split", "Slice", "Identity", "Cast", "Constant", "ConstantOfShape",
    "DequantizeLinear", "QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "MatMulNBits", "Attention", "QAttention", "If", "Loop", "Scan", "Flatten", "Expand", "Einsum", "PRelu",
    "Shape", "DynamicQuantizeMatMul", "FusedConv", "SkipLayerNormalization", "EmbedLayerNormalization",
)  # fmt: skip
_ATTRIBUTES = (
    "axis", "perm", "group", "transA", "transB", "alpha", "to", "axes", "hidden_size", "direction", "value",
    "value_float", "value_ints", "sparse_value", "bits", "block_size", "N", "K", "num_heads", "body",
    "then_branch", "linear_before_reset", "layout", "keepdims", "epsilon", "allowzero", "equation",
)  # fmt: skip
_Change = Callable[[Case, ModelProto], None]


def tensors(case: Case) -> None:
    """Change shapes, types, names and data of tensors."""
    _changed(case, (_dims, _dims, _type, _data, _name, _tensor_kind))


def external(case: Case) -> None:
    """Move values to other files: outside, missing, beyond their ends."""
    _changed(case, (_external,))


def nodes(case: Case) -> None:
    """Change operators, attributes and who reads what."""
    _changed(case, (_operator, _attribute, _attribute, _wiring, _wiring, _order))


def graphs(case: Case) -> None:
    """Nest graphs, make functions that call each other, and long chains."""
    _changed(case, (_nest, _function, _chain, _constant, _sparse))


def model(case: Case) -> None:
    """Change versions, domains, inputs and told shapes, mixed with all the rest."""
    _changed(case, (_versions, _told, _dims, _attribute, _wiring, _constant, _external, _quantise))


def _changed(case: Case, changes: tuple[_Change, ...]) -> None:
    found = ModelProto()
    try:
        found.ParseFromString(case.path.read_bytes())
        for _ in range(case.rng.choice((1, 1, 2, 4))):
            case.rng.choice(changes)(case, found)
        case.path.write_bytes(found.SerializeToString())
    except (DecodeError, EncodeError, UnicodeEncodeError):
        case.path.write_bytes(case.any_bytes())


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _graph(case: Case, found: ModelProto) -> GraphProto:
    return case.rng.choice(list(_graphs(found.graph)))


def _tensor(case: Case, found: ModelProto) -> TensorProto:
    graph = _graph(case, found)
    held = [a.t for n in graph.node for a in n.attribute if a.HasField("t")]
    every = [*graph.initializer, *held, *found.graph.initializer]
    if every:
        held_one: TensorProto = case.rng.choice(every)
        return held_one
    new: TensorProto = found.graph.initializer.add(name="new", data_type=1)
    return new


def _node(case: Case, found: ModelProto) -> NodeProto:
    graph = _graph(case, found)
    if graph.node:
        chosen: NodeProto = case.rng.choice(list(graph.node))
        return chosen
    new: NodeProto = graph.node.add(op_type="Identity")
    return new


def _names(found: ModelProto) -> list[str]:
    graph = found.graph
    every = [n for node in graph.node for n in (*node.input, *node.output)]
    return [*every, *(t.name for t in graph.initializer), "", "nowhere"]


def _dims(case: Case, found: ModelProto) -> None:
    dims, rng = _tensor(case, found).dims, case.rng
    kind = rng.randrange(5)
    if kind == 0 or not dims:
        dims.append(rng.choice(NUMBERS))
    elif kind == 1:
        dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)
    elif kind == 2:
        dims.pop()
    elif kind == 3:
        dims[:] = rng.sample(list(dims), len(dims))
    else:
        dims.extend([1] * rng.choice((1, 10, 70)))


def _type(case: Case, found: ModelProto) -> None:
    _tensor(case, found).data_type = case.rng.choice((*range(28), 99, -1))


def _data(case: Case, found: ModelProto) -> None:
    tensor, rng = _tensor(case, found), case.rng
    kind, field = (
        rng.randrange(5),
        rng.choice(("float_data", "int32_data", "int64_data", "double_data")),
    )
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == 1:
        tensor.raw_data += case.any_bytes()
    elif kind == 2:
        tensor.ClearField("raw_data")
    elif kind == 3:
        getattr(tensor, field).extend([rng.choice((0, 1, -1, 127, 300))] * rng.choice((1, 9, 64)))
    else:
        tensor.string_data.extend([b"text", b"\xff"])
        tensor.ClearField("raw_data")


def _name(case: Case, found: ModelProto) -> None:
    _tensor(case, found).name = case.rng.choice((*NAMES, *_names(found)))


def _tensor_kind(case: Case, found: ModelProto) -> None:
    """Make an initializer a constant node of the same name, or name it twice."""
    graph = found.graph
    if not graph.initializer:
        return
    tensor = case.rng.choice(graph.initializer)
    graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    if case.rng.random() < 0.7:
        graph.initializer.remove(tensor)


def _external(case: Case, found: ModelProto) -> None:
    tensor, rng = _tensor(case, found), case.rng
    beside = [p.name for p in sorted(case.path.parent.iterdir()) if p.is_file()]
    tensor.data_location = rng.choice(
        (TensorProto.EXTERNAL, TensorProto.EXTERNAL, TensorProto.DEFAULT)
    )
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    if rng.random() < 0.5:
        del tensor.external_data[:]
    values = {
        "location": rng.choice((case.outside(), case.outside(), *beside)),
        "offset": str(rng.choice((0, 0, 4, *NUMBERS, "x", ""))),
        "length": str(rng.choice((*NUMBERS, 16, 64, "1e3"))), "checksum": "0", "basepath": "/etc",
    }  # fmt: skip
    for key in rng.sample(list(values), rng.randrange(1, 4)) + ["location"] * (rng.random() < 0.8):
        tensor.external_data.add(key=key, value=values[key])


def _operator(case: Case, found: ModelProto) -> None:
    node = _node(case, found)
    node.op_type = case.rng.choice((*_OPERATORS, *NAMES))
    node.domain = case.rng.choice((node.domain, "", "ai.onnx", "com.microsoft", "x"))


def _attribute(case: Case, found: ModelProto) -> None:
    node, rng = _node(case, found), case.rng
    if node.attribute and rng.random() < 0.2:
        del node.attribute[rng.randrange(len(node.attribute))]
        return
    if node.attribute and rng.random() < 0.6:
        attribute = rng.choice(node.attribute)
    else:
        attribute = node.attribute.add(name=rng.choice(_ATTRIBUTES))
    kind = rng.choice((*AttributeProto.AttributeType.values(), attribute.type, attribute.type))
    attribute.type = kind
    attribute.i = rng.choice(NUMBERS)
    attribute.f = rng.choice((0.0, float("nan"), 1e38, -1.0))
    del attribute.ints[:]
    attribute.ints.extend(rng.choice((*NUMBERS, 0, 1, 2)) for _ in range(rng.randrange(5)))
    if kind in (AttributeProto.GRAPH, AttributeProto.GRAPHS) and rng.random() < 0.5:
        attribute.g.CopyFrom(helper.make_graph([], "empty", [], []))
    if rng.random() < 0.1:
        attribute.ref_attr_name = "axis"
    attribute.s = rng.choice((b"", b"\xff", b"bidirectional", b"ij,jk->ik"))


def _wiring(case: Case, found: ModelProto) -> None:
    node, rng, names = _node(case, found), case.rng, _names(found)
    ends = rng.choice((node.input, node.input, node.output))
    kind = rng.randrange(4)
    if kind == 0 or not ends:
        ends.append(rng.choice(names))
    elif kind == 1:
        ends[rng.randrange(len(ends))] = rng.choice(names)
    elif kind == 2:
        ends.pop()
    else:
        ends[:] = rng.sample(list(ends), len(ends))


def _order(case: Case, found: ModelProto) -> None:
    nodes = list(found.graph.node)
    case.rng.shuffle(nodes)
    del found.graph.node[:]
    found.graph.node.extend(nodes + nodes[: case.rng.choice((0, 0, 3))])


def _nest(case: Case, found: ModelProto) -> None:
    """Put the whole graph into the branch of another one, sometimes too deep to be meant."""
    kind = case.rng.choice(("If", "Loop", "Scan"))
    name = "then_branch" if kind == "If" else "body"
    for _ in range(case.rng.choice((1, 2, 20, 40))):
        inner = GraphProto()
        inner.CopyFrom(found.graph)
        outer = helper.make_graph(
            [helper.make_node(kind, ["c"], ["y"])], "outer", list(inner.input), list(inner.output)
        )
        outer.node[0].attribute.append(helper.make_attribute(name, inner))
        if outer.ByteSize() > 4_000_000:
            return
        found.graph.CopyFrom(outer)


def _function(case: Case, found: ModelProto) -> None:
    """Move the nodes into a function, which may call itself, or be called very often."""
    rng, graph = case.rng, found.graph
    inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
    if rng.random() < 0.5:
        inputs += [t.name for t in graph.initializer]
    call = helper.make_node("f0", inputs, outputs, domain="own")
    depth = rng.choice((1, 2, 12, 30))
    for i in range(depth):
        target = NodeProto()
        target.CopyFrom(call)
        target.op_type = f"f{i + 1 if rng.random() < 0.95 else 0}"
        body = list(graph.node) if i == depth - 1 else [target] * rng.choice((1, 2))
        found.functions.add(
            name=f"f{i}", domain="own", input=inputs, output=outputs, node=body,
            opset_import=found.opset_import,
        )  # fmt: skip
    del graph.node[:]
    graph.node.extend([call])


def _chain(case: Case, found: ModelProto) -> None:
    """Lead a weight through very many nodes."""
    rng, graph = case.rng, found.graph
    readers = [n for n in graph.node if n.input]
    if not readers:
        return
    reader = rng.choice(readers)
    place = rng.randrange(len(reader.input))
    value, kind = (
        reader.input[place],
        rng.choice(("Identity", "Transpose", "Cast", "Relu", "Squeeze")),
    )
    made = []
    for i in range(rng.choice((3, 200, 3000))):
        made.append(helper.make_node(kind, [value], [f"chain{i}"]))
        value = f"chain{i}"
    reader.input[place] = value
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *old])


def _constant(case: Case, found: ModelProto) -> None:
    """Make some node's input a constant of a doubtful kind."""
    rng, node = case.rng, _node(case, found)
    name = rng.choice(list(node.input) or ["x"])
    size = [rng.choice((*NUMBERS, 4, 64)) for _ in range(rng.choice((1, 2, 3)))]
    kept = helper.make_tensor("", TensorProto.INT64, [len(size)], size)
    one = TensorProto(data_type=rng.choice((1, 10, 11, 8, 16)), dims=[rng.choice((1, 0, 2))])
    one.raw_data = bytes(rng.choice((0, 2, 4, 8)))
    made = rng.choice(
        (
            [helper.make_node("Constant", [], ["size"], value=kept),
             helper.make_node("ConstantOfShape", ["size"], [name])],
            [helper.make_node("Constant", [], [name], value_floats=[1.0] * rng.choice((0, 4, 64)))],
            [helper.make_node("Constant", [], [name], value_float=1.0, value_int=3)],
            [helper.make_node("Constant", [], [name], value=one)],
            [helper.make_node("Constant", [], [name])],
        )
    )  # fmt: skip
    old = [t for t in found.graph.initializer if t.name == name]
    for tensor in old:
        found.graph.initializer.remove(tensor)
    nodes = list(found.graph.node)
    del found.graph.node[:]
    found.graph.node.extend([*made, *nodes])


def _sparse(case: Case, found: ModelProto) -> None:
    rng, graph = case.rng, found.graph
    name = rng.choice([t.name for t in graph.initializer] or ["x"])
    entries, rank = rng.choice((0, 1, 5)), rng.choice((1, 2))
    numbers = [rng.choice((0, 1, 2, 3, *NUMBERS)) for _ in range(entries * rank)]
    sparse = onnx.SparseTensorProto(dims=[rng.choice((2, 4, 64, *NUMBERS)) for _ in range(2)])
    sparse.values.CopyFrom(helper.make_tensor(name, 1, [entries], [1.5] * entries))
    shape = [entries, rank] if rank > 1 else [entries]
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, shape, numbers))
    for tensor in [t for t in graph.initializer if t.name == name]:
        graph.initializer.remove(tensor)
    graph.sparse_initializer.append(sparse)


def _quantise(case: Case, found: ModelProto) -> None:
    """Claim that a weight is quantised, with scales that need not fit."""
    rng, graph = case.rng, found.graph
    readers = [n for n in graph.node if len(n.input) > 1]
    if not readers:
        return
    reader = rng.choice(readers)
    size = rng.choice((1, 2, 4, 8, 64))
    scale = helper.make_tensor("a_scale", rng.choice((1, 10)), [size], [0.5] * size)
    graph.initializer.append(scale)
    node = helper.make_node(
        "DequantizeLinear", [reader.input[1], "a_scale"], ["a_whole"],
        axis=rng.choice((0, 1, *NUMBERS)), block_size=rng.choice((0, 0, 2, 32, *NUMBERS)),
    )  # fmt: skip
    reader.input[1] = "a_whole"
    graph.node.insert(0, node)


def _versions(case: Case, found: ModelProto) -> None:
    rng: Random = case.rng
    found.ir_version = rng.choice((1, 3, 8, 99, *NUMBERS))
    if rng.random() < 0.5 and found.opset_import:
        found.opset_import[0].version = rng.choice((1, 6, 7, 13, 30, *NUMBERS))
    if rng.random() < 0.2:
        del found.opset_import[:]
    if rng.random() < 0.2:
        found.opset_import.add(domain=rng.choice(NAMES[:5]), version=1)


def _told(case: Case, found: ModelProto) -> None:
    rng, graph = case.rng, found.graph
    every = [*graph.input, *graph.output, *graph.value_info]
    if rng.random() < 0.3 and graph.initializer:
        graph.input.add(name=rng.choice(graph.initializer).name)
    elif every:
        told = rng.choice(every)
        told.name = rng.choice((told.name, told.name, "x", ""))
        shape = told.type.tensor_type.shape
        shape.dim.add(dim_value=rng.choice(NUMBERS))
        shape.dim[rng.randrange(len(shape.dim))].dim_value = rng.choice(NUMBERS)
        told.type.tensor_type.elem_type = rng.choice((0, 1, 7, 99))


MUTATIONS: dict[str, Mutation] = {
    "tensors": tensors, "external data": external, "nodes": nodes, "graphs": graphs, "model": model
}  # fmt: skip
