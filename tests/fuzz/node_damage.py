"""Damage to the nodes of an ONNX model: operators, attributes, wiring, graphs in graphs."""

from __future__ import annotations

import onnx
from fuzz.case import NAMES, NUMBERS, Case
from fuzz.picking import any_node, names_in, rearranged
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

_OPERATORS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "BatchNormalization",
    "LSTM",
    "GRU",
    "RNN",
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "Gather",
    "Transpose",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Concat",
    "Split",
    "Slice",
    "Identity",
    "Cast",
    "Constant",
    "ConstantOfShape",
    "DequantizeLinear",
    "QuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "Attention",
    "QAttention",
    "If",
    "Loop",
    "Scan",
    "Flatten",
    "Expand",
    "Einsum",
    "PRelu",
    "Shape",
    "DynamicQuantizeMatMul",
    "FusedConv",
    "SkipLayerNormalization",
    "EmbedLayerNormalization",
)
_ATTRIBUTES = (
    "axis",
    "perm",
    "group",
    "transA",
    "transB",
    "alpha",
    "to",
    "axes",
    "hidden_size",
    "direction",
    "value",
    "value_float",
    "value_ints",
    "sparse_value",
    "bits",
    "block_size",
    "N",
    "K",
    "num_heads",
    "body",
    "then_branch",
    "linear_before_reset",
    "layout",
    "keepdims",
    "epsilon",
    "allowzero",
    "equation",
)


def operator(case: Case, found: ModelProto) -> None:
    node = any_node(case, found)
    node.op_type = case.rng.choice((*_OPERATORS, *NAMES))
    node.domain = case.rng.choice((node.domain, "", "ai.onnx", "com.microsoft", "x"))


def attribute(case: Case, found: ModelProto) -> None:
    node, rng = any_node(case, found), case.rng
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


def wiring(case: Case, found: ModelProto) -> None:
    node, rng = any_node(case, found), case.rng
    ends = rng.choice((node.input, node.input, node.output))
    ends[:] = rearranged(case, ends, rng.choice(names_in(found)))


def order(case: Case, found: ModelProto) -> None:
    nodes = list(found.graph.node)
    case.rng.shuffle(nodes)
    del found.graph.node[:]
    found.graph.node.extend(nodes + nodes[: case.rng.choice((0, 0, 3))])


def nest(case: Case, found: ModelProto) -> None:
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


def function(case: Case, found: ModelProto) -> None:
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
            name=f"f{i}",
            domain="own",
            input=inputs,
            output=outputs,
            node=body,
            opset_import=found.opset_import,
        )
    del graph.node[:]
    graph.node.extend([call])


def chain(case: Case, found: ModelProto) -> None:
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


def constant(case: Case, found: ModelProto) -> None:
    """Make some node's input a constant of a doubtful kind."""
    rng, node = case.rng, any_node(case, found)
    name = rng.choice(list(node.input) or ["x"])
    size = [rng.choice((*NUMBERS, 4, 64)) for _ in range(rng.choice((1, 2, 3)))]
    kept = helper.make_tensor("", TensorProto.INT64, [len(size)], size)
    one = TensorProto(data_type=rng.choice((1, 10, 11, 8, 16)), dims=[rng.choice((1, 0, 2))])
    one.raw_data = bytes(rng.choice((0, 2, 4, 8)))
    made = rng.choice(
        (
            [
                helper.make_node("Constant", [], ["size"], value=kept),
                helper.make_node("ConstantOfShape", ["size"], [name]),
            ],
            [helper.make_node("Constant", [], [name], value_floats=[1.0] * rng.choice((0, 4, 64)))],
            [helper.make_node("Constant", [], [name], value_float=1.0, value_int=3)],
            [helper.make_node("Constant", [], [name], value=one)],
            [helper.make_node("Constant", [], [name])],
        )
    )
    old = [t for t in found.graph.initializer if t.name == name]
    for tensor in old:
        found.graph.initializer.remove(tensor)
    nodes = list(found.graph.node)
    del found.graph.node[:]
    found.graph.node.extend([*made, *nodes])


def sparse(case: Case, found: ModelProto) -> None:
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


def quantize(case: Case, found: ModelProto) -> None:
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
        "DequantizeLinear",
        [reader.input[1], "a_scale"],
        ["a_whole"],
        axis=rng.choice((0, 1, *NUMBERS)),
        block_size=rng.choice((0, 0, 2, 32, *NUMBERS)),
    )
    reader.input[1] = "a_whole"
    graph.node.insert(0, node)
