"""Which integers of a model are weights, and which of its numbers are their scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from onnx import NodeProto

from sane_onnx.attributes import integer
from sane_onnx.constants import Source
from sane_onnx.proto import MICROSOFT, STANDARD
from sane_onnx.quantized import QuantizedWeight
from sane_onnx.tensors import FLOATS, StoredTensor

# Operator: (input of the integers, inputs of the scales, input of the zero point, axis of the scales).
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
_LATER = {"MatMulInteger": (1, 3, -1), "ConvInteger": (1, 3, 0)}
_MOST_CASTS = 8
_OTHERS = {"DequantizeLinear": 0, "MatMulNBits": 1, "GatherBlockQuantized": 0}


def reads_weights(node: NodeProto, place: int) -> bool:
    """Tell whether a node takes quantised weights as this input."""
    values = {rule[0] for rule in _RULES.get(node.op_type, ())}
    values |= {_LATER[node.op_type][0]} if node.op_type in _LATER else set()
    return place in values or _OTHERS.get(node.op_type) == place


def find(nodes: Sequence[NodeProto], constants: Mapping[str, Source]) -> dict[str, QuantizedWeight]:
    """Return the quantised weights of a model by their keys."""
    found: dict[str, QuantizedWeight] = {}
    flow = _QuantizationFlow(nodes)
    for node in nodes:
        for key, weight in _of(node, flow, constants):
            found.setdefault(key, weight)
    return found


def _of(
    node: NodeProto, flow: _QuantizationFlow, constants: Mapping[str, Source]
) -> Iterator[tuple[str, QuantizedWeight]]:
    def at(place: int) -> str:
        return node.input[place] if 0 <= place < len(node.input) else ""

    rules: Sequence[_Rule] = ()
    if node.op_type == "DequantizeLinear" and node.domain in (*STANDARD, MICROSOFT):
        rules = [(0, (1,), 2, integer(node, "axis", 1))]
    elif node.domain in (*STANDARD, MICROSOFT):
        rules = _RULES.get(node.op_type, ())
    for values, scales, zero, axis in rules:
        block = integer(node, "block_size", 0)
        if node.op_type == "QGemm" and values == 3:
            axis = 0 if integer(node, "transB", 0) else 1
        yield from _made(constants, at(values), [at(i) for i in scales], at(zero), axis, block)
    if node.op_type in _LATER and node.domain in STANDARD:
        values, zero, axis = _LATER[node.op_type]
        scale = _scale_after(node.output[0], flow, constants) if node.output else ""
        yield from _made(constants, at(values), [scale], at(zero), axis, 0)
    if node.op_type == "MatMulNBits" and node.domain == MICROSOFT:
        yield from _packed(node, constants, at(1), at(2), at(3))


def _made(
    constants: Mapping[str, Source],
    values: str,
    scales: Sequence[str],
    zero: str,
    axis: int,
    block: int,
) -> Iterator[tuple[str, QuantizedWeight]]:
    stored, offset = constants.get(values), constants.get(zero)
    kept = [constants[name] for name in scales if name in constants]
    if not isinstance(stored, StoredTensor) or stored.dtype is None or len(kept) < len(scales):
        return
    if stored.tensor.data_type in FLOATS or (zero and not isinstance(offset, StoredTensor)):
        return
    if not stored.shape or not -len(stored.shape) <= axis < len(stored.shape):
        axis = 0
    is_each = prod(kept[-1].shape) > 1
    known = offset if isinstance(offset, StoredTensor) else None
    yield (
        values,
        QuantizedWeight(
            stored=stored,
            scales=tuple(kept),
            zero=known,
            axis=axis % max(len(stored.shape), 1),
            block=block if is_each else 0,
            settings=(*scales, zero),
        ),
    )


def _packed(
    node: NodeProto, constants: Mapping[str, Source], values: str, scales: str, zero: str
) -> Iterator[tuple[str, QuantizedWeight]]:
    stored, scale, offset = constants.get(values), constants.get(scales), constants.get(zero)
    rows, columns = integer(node, "N", 0), integer(node, "K", 0)
    bits, block = integer(node, "bits", 4), integer(node, "block_size", 0)
    if not isinstance(stored, StoredTensor) or scale is None or bits not in (2, 4, 8) or block < 1:
        return
    is_whole = (
        rows > 0 and columns > 0 and stored.size == rows * -(-columns // block) * block * bits // 8
    )
    if not is_whole or (zero and not isinstance(offset, StoredTensor)):
        return
    known = offset if isinstance(offset, StoredTensor) else None
    yield (
        values,
        QuantizedWeight(
            stored=stored,
            scales=(scale,),
            zero=known,
            axis=1,
            block=block,
            packed=(rows, columns, bits),
            settings=(scales, zero),
        ),
    )


class _QuantizationFlow:
    """Who makes a value, and which cast or product reads it first."""

    def __init__(self, nodes: Sequence[NodeProto]) -> None:
        self.makers = {name: node for node in nodes for name in node.output if name}
        self.readers: dict[str, NodeProto] = {}
        for node in nodes:
            if node.op_type in ("Cast", "Mul"):
                for name in node.input:
                    self.readers.setdefault(name, node)


def _scale_after(value: str, flow: _QuantizationFlow, constants: Mapping[str, Source]) -> str:
    """Return the constant factor that a product of integers is multiplied with, after a cast."""
    for _ in range(_MOST_CASTS):
        node = flow.readers.get(value)
        if node is None or not node.output:
            return ""
        if node.op_type == "Mul":
            other = next((x for x in node.input if x != value), "")
            maker = flow.makers.get(other)
            factors = [
                other,
                *(maker.input if maker is not None and maker.op_type == "Mul" else ()),
            ]
            return next((x for x in factors if x in constants), "")
        value = node.output[0]
    return ""
