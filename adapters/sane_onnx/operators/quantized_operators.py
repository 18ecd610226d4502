"""Quantised operators: input indices of weights, scales and zero points, and the axis of the scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.operators.attributes import integer
from sane_onnx.proto import MICROSOFT, STANDARD
from sane_onnx.quantized import QuantizedWeight
from sane_onnx.tensors import FLOATS, StoredTensor

# Operator: (index of the integers, indices of the scales, index of the zero point, axis of the scales).
_Rule = tuple[int, tuple[int, ...], int, int]
_RULES: Mapping[str, Sequence[_Rule]] = {
    "QLinearConv": [(3, (4,), 5, 0), (8, (1, 4), -1, 0)],
    "QLinearMatMul": [(3, (4,), 5, -1)],
    "QGemm": [(3, (4,), 5, -1), (6, (1, 4), -1, 0)],
    "QAttention": [(1, (4,), 7, -1)],
    "MatMulIntegerToFloat": [(1, (3,), 5, -1)],
    "DynamicQuantizeMatMul": [(1, (2,), 3, -1)],
    "DynamicQuantizeLSTM": [(1, (8,), 9, -1), (2, (10,), 11, -1)],
    "QEmbedLayerNormalization": [(i, (i + 6,), i + 11, -1) for i in range(2, 7)],
}
# Operator whose product is cast and scaled later: (integers, zero point, axis of the scales).
_INTEGER_PRODUCTS = {"MatMulInteger": (1, 3, -1), "ConvInteger": (1, 3, 0)}
_MAX_CASTS = 8
_OTHER_WEIGHT_INPUTS = {"DequantizeLinear": 0, "MatMulNBits": 1, "GatherBlockQuantized": 0}


def is_weight_input(node: NodeProto, index: int) -> bool:
    """Return whether a node takes quantised weights as the input of this index."""
    values = {rule[0] for rule in _RULES.get(node.op_type, ())}
    values |= {_INTEGER_PRODUCTS[node.op_type][0]} if node.op_type in _INTEGER_PRODUCTS else set()
    return index in values or _OTHER_WEIGHT_INPUTS.get(node.op_type) == index


def find_quantized_weights(
    nodes: Sequence[NodeProto], constants: Mapping[str, Constant]
) -> dict[str, QuantizedWeight]:
    """Return the quantised weights of a model by key."""
    weights: dict[str, QuantizedWeight] = {}
    flow = _Dataflow(nodes)
    for node in nodes:
        for key, weight in _weights_of_node(node, flow, constants):
            weights.setdefault(key, weight)
    return weights


def _weights_of_node(
    node: NodeProto, flow: _Dataflow, constants: Mapping[str, Constant]
) -> Iterator[tuple[str, QuantizedWeight]]:
    def input_at(index: int) -> str:
        return node.input[index] if 0 <= index < len(node.input) else ""

    rules: Sequence[_Rule] = ()
    if node.op_type == "DequantizeLinear" and node.domain in (*STANDARD, MICROSOFT):
        rules = [(0, (1,), 2, integer(node, "axis", 1))]
    elif node.domain in (*STANDARD, MICROSOFT):
        rules = _RULES.get(node.op_type, ())
    for values, scales, zero, axis in rules:
        block = integer(node, "block_size", 0)
        if node.op_type == "QGemm" and values == 3:
            axis = 0 if integer(node, "transB", 0) else 1
        yield from _quantized_weight(
            constants, input_at(values), [input_at(i) for i in scales], input_at(zero), axis, block
        )
    if node.op_type in _INTEGER_PRODUCTS and node.domain in STANDARD:
        values, zero, axis = _INTEGER_PRODUCTS[node.op_type]
        scale = _scale_after(node.output[0], flow, constants) if node.output else ""
        yield from _quantized_weight(constants, input_at(values), [scale], input_at(zero), axis, 0)
    if node.op_type == "MatMulNBits" and node.domain == MICROSOFT:
        yield from _packed_weight(node, constants, input_at(1), input_at(2), input_at(3))


def _quantized_weight(
    constants: Mapping[str, Constant],
    values: str,
    scales: Sequence[str],
    zero: str,
    axis: int,
    block: int,
) -> Iterator[tuple[str, QuantizedWeight]]:
    stored, zero_point = constants.get(values), constants.get(zero)
    scale_constants = [constants[name] for name in scales if name in constants]
    if (
        not isinstance(stored, StoredTensor)
        or stored.dtype is None
        or len(scale_constants) < len(scales)
    ):
        return
    if stored.tensor.data_type in FLOATS or (zero and not isinstance(zero_point, StoredTensor)):
        return
    if not stored.shape or not -len(stored.shape) <= axis < len(stored.shape):
        axis = 0
    has_many_scales = prod(scale_constants[-1].shape) > 1
    yield (
        values,
        QuantizedWeight(
            stored=stored,
            scales=tuple(scale_constants),
            zero_point=zero_point if isinstance(zero_point, StoredTensor) else None,
            axis=axis % max(len(stored.shape), 1),
            block=block if has_many_scales else 0,
            settings=(*scales, zero),
        ),
    )


def _packed_weight(
    node: NodeProto, constants: Mapping[str, Constant], values: str, scales: str, zero: str
) -> Iterator[tuple[str, QuantizedWeight]]:
    stored, scale = constants.get(values), constants.get(scales)
    zero_point = constants.get(zero)
    rows, columns = integer(node, "N", 0), integer(node, "K", 0)
    bits, block = integer(node, "bits", 4), integer(node, "block_size", 0)
    if not isinstance(stored, StoredTensor) or scale is None or bits not in (2, 4, 8) or block < 1:
        return
    if block * bits % 8:  # a block is whole bytes
        return
    is_complete = (
        rows > 0 and columns > 0 and stored.size == rows * -(-columns // block) * block * bits // 8
    )
    if not is_complete or (zero and not isinstance(zero_point, StoredTensor)):
        return
    yield (
        values,
        QuantizedWeight(
            stored=stored,
            scales=(scale,),
            zero_point=zero_point if isinstance(zero_point, StoredTensor) else None,
            axis=1,
            block=block,
            packed=(rows, columns, bits),
            settings=(scales, zero),
        ),
    )


class _Dataflow:
    """Producers of values, and the first Cast or Mul that reads each."""

    def __init__(self, nodes: Sequence[NodeProto]) -> None:
        self.producers = {name: node for node in nodes for name in node.output if name}
        self.readers: dict[str, NodeProto] = {}
        for node in nodes:
            if node.op_type in ("Cast", "Mul"):
                for name in node.input:
                    self.readers.setdefault(name, node)


def _scale_after(value: str, flow: _Dataflow, constants: Mapping[str, Constant]) -> str:
    """Return the constant that the product of ConvInteger or MatMulInteger is scaled by, after casts."""
    for _ in range(_MAX_CASTS):
        node = flow.readers.get(value)
        if node is None or not node.output:
            return ""
        if node.op_type == "Mul":
            other = next((x for x in node.input if x != value), "")
            producer = flow.producers.get(other)
            factors = [
                other,
                *(producer.input if producer is not None and producer.op_type == "Mul" else ()),
            ]
            return next((x for x in factors if x in constants), "")
        value = node.output[0]
    return ""
