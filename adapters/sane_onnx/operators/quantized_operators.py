"""Quantised operators: which inputs are integers of weights, and which numbers scale them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import AttributeProto, NodeProto

from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.operators.attributes import integer, text

# Operator: (index of the integers, indices of the scales, index of the zero point, axis of the scales).
_Rule = tuple[int, tuple[int, ...], int, int]
_BINARY: Sequence[_Rule] = [(0, (1,), 2, -1), (3, (4,), 5, -1)]
_RULES: Mapping[str, Sequence[_Rule]] = {
    "DynamicQuantizeLSTM": [(1, (8,), 9, -1), (2, (10,), 11, -1)],
    "DynamicQuantizeMatMul": [(1, (2,), 3, -1)],
    "GemmFloat8": [(1, (4,), -1, 0)],
    "MatMulIntegerToFloat": [(1, (3,), 5, -1)],
    "QAttention": [(1, (4,), 7, -1)],
    "QEmbedLayerNormalization": [(i, (i + 6,), i + 11, -1) for i in range(2, 7)],
    "QGemm": [(3, (4,), 5, -1), (6, (1, 4), -1, 0)],
    "QLinearAdd": _BINARY,
    "QLinearConv": [(3, (4,), 5, 0), (8, (1, 4), -1, 0)],
    "QLinearMatMul": [*_BINARY],
    "QLinearMul": _BINARY,
    "QLinearWhere": [(1, (2,), 3, -1), (4, (5,), 6, -1)],
}
# Operator whose product is cast and scaled later: (integers, zero point, axis of the scales).
_INTEGER_PRODUCTS: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "MatMulInteger": [(1, 3, -1), (0, 2, -2)],
    "ConvInteger": [(1, 3, 0)],
}
# Operators with matrices (N, K) packed in blocks along K: (integers, scales, zero point, attribute N).
_BLOCKS: Mapping[str, Sequence[tuple[int, int, int, str]]] = {
    "MatMulNBits": [(1, 2, 3, "N")],
    "MatMulNBitsMlp": [(3, 4, -1, "N"), (6, 7, -1, "N")],
    "MatMulNBitsQLoRA": [(1, 2, -1, "N")],
    "MatMulNBitsQkv": [(3, 4, -1, "Nq"), (6, 7, -1, "Nkv"), (9, 10, -1, "Nkv")],
}
_EXPERTS = {2: (3, 11, "fc1"), 5: (6, 12, "fc2"), 8: (9, 13, "fc3")}
# What the sixteen codes of MatMulBnb4 stand for: FP4, NF4 (bitsandbytes, functional.get_4bit_type).
_FP4 = (0, 0.0625, 8, 12, 4, 6, 2, 3)
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_CODES = {
    0: tuple(x / 12 for x in _FP4) + tuple(-x / 12 for x in _FP4),
    1: _NF4,
}
# Other inputs that are scales: of activations, of outputs, or of weights in a layout that is not read.
_SCALES: Mapping[str, Sequence[int]] = {
    "DequantizeLinear": (1, 2),
    "DequantizeWithOrder": (1,),
    "DynamicQuantizeLSTM": (4, 5, 6, 8, 9, 10, 11),
    "DynamicQuantizeMatMul": (2, 3),
    "DynamicSparseAttention": (18, 19),
    "GatherBlockQuantized": (2, 3),
    "GemmFloat8": (3, 4, 5),
    "GroupQueryAttention": (12, 13),
    "MatMulBlockQuantizedFp4Weight": (2, 3, 4),
    "MatMulBlockQuantizedFp8Weight": (2, 3),
    "MatMulBnb4": (2,),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "MatMulNBits": (2, 3, 4),
    "MatMulNBitsMlp": (4, 7),
    "MatMulNBitsQLoRA": (2, 4, 6),
    "MatMulNBitsQkv": (4, 7, 10),
    "MatMulPacked": (2,),
    "PagedAttention": (14, 15),
    "QAttention": (3, 4, 6, 7),
    "QEmbedLayerNormalization": range(8, 18),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearAveragePool": (1, 2, 3, 4),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearGlobalAveragePool": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "QLinearReduceMean": (1, 2, 3, 4),
    "QLinearSigmoid": (1, 2, 3, 4),
    "QLinearSoftmax": (1, 2, 3, 4),
    "QLinearWhere": (2, 3, 5, 6, 7, 8),
    "QMoE": (3, 6, 9, *range(11, 21)),
    "QOrderedAttention": (1, 2, 3, 4, 8, 9, 10, 14, 15, 16),
    "QOrderedGelu": (1, 2),
    "QOrderedLayerNormalization": (1, 4),
    "QOrderedLongformerAttention": (1, 3, 5, 6, 9, 11, 13),
    "QOrderedMatMul": (1, 3, 4, 7),
    "QuantizeLinear": (1, 2),
    "QuantizeWithOrder": (1,),
    "SparsePagedAttention": (19, 20),
}


@dataclass(frozen=True, kw_only=True)
class QuantizedInput:
    """Integers that an operator scales: indices of its inputs, and how the scales lie over the values.

    `bits` are those of packed numbers, `size` the shape of the packed tensor where attributes state it.
    `leading`: scales lie along the first axes, and the last where there is an axis of them for it.
    """

    scales: tuple[int, ...]
    zero: int = -1
    axis: int = 0
    block: int = 0
    groups: int = -1
    bits: int = 0
    size: tuple[int, ...] = ()
    codes: tuple[float, ...] = field(default=(), repr=False)
    default_zero: float = 0.0
    is_leading: bool = False
    is_scaled_later: bool = False


def quantized_input(node: NodeProto, index: int, is_byte: bool) -> QuantizedInput | None:
    """Return how a node scales the integers of this input (unsigned bytes?); None where it does not."""
    operator = node.op_type
    if node.domain not in (*STANDARD, MICROSOFT):
        return None
    if operator == "DequantizeLinear":
        axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
        return QuantizedInput(scales=(1,), zero=2, axis=axis, block=block) if index == 0 else None
    if operator == "QLinearConcat" and index >= 2 and index % 3 == 2:
        return QuantizedInput(scales=(index + 1,), zero=index + 2)
    if operator in _INTEGER_PRODUCTS:
        products = [x for x in _INTEGER_PRODUCTS[operator] if x[0] == index]
        return next((_scaled_later(zero, axis) for _, zero, axis in products), None)
    if node.domain == MICROSOFT and (packed := _packed_input(node, index, is_byte)) is not None:
        return packed
    for values, scales, zero, axis in _RULES.get(operator, ()):
        if values == index:
            if operator == "QGemm" and values == 3:
                axis = 0 if integer(node, "transB", 0) else 1
            is_leading = operator == "DynamicQuantizeLSTM"
            return QuantizedInput(scales=scales, zero=zero, axis=axis, is_leading=is_leading)
    return None


def scale_inputs(node: NodeProto) -> Sequence[int]:
    """Return the indices of a quantised operator's inputs that are scales, zero points or groups."""
    if node.op_type == "QLinearConcat":
        return [i for i in range(len(node.input)) if i < 2 or i % 3 != 2]
    products = _INTEGER_PRODUCTS.get(node.op_type)
    return [zero for _, zero, _ in products] if products else _SCALES.get(node.op_type, ())


def _scaled_later(zero: int, axis: int) -> QuantizedInput:
    return QuantizedInput(scales=(), zero=zero, axis=axis, is_scaled_later=True)


def _packed_input(node: NodeProto, index: int, is_byte: bool) -> QuantizedInput | None:
    """Return how an operator of onnxruntime's own scales integers in blocks."""
    operator, bits, block = node.op_type, integer(node, "bits", 4), integer(node, "block_size", 0)
    rows, columns = integer(node, "N", 0), integer(node, "K", 0)
    for values, scales, zero, name in _BLOCKS.get(operator, ()):
        if values == index and not integer(node, "weight_prepacked", 0):
            size = (integer(node, name, 0), columns)
            groups = 4 if operator == "MatMulNBits" else -1
            return _blocks(bits, scales, zero, size=size, axis=1, block=block, groups=groups)
    if operator == "MatMulBnb4" and index == 1 and block > 0:
        codes = _CODES.get(integer(node, "quant_type", 0), ())
        return codes and QuantizedInput(  # type: ignore[return-value]
            scales=(2,), block=block, bits=4, size=(rows, columns), codes=codes
        )
    if operator == "MatMulBlockQuantizedFp8Weight" and index == 1:
        return QuantizedInput(scales=(2,), axis=1, block=integer(node, "block_size", 128))
    if operator == "GatherBlockQuantized" and index == 0:
        axis, block = integer(node, "quantize_axis", 1), integer(node, "block_size", 128)
        if is_byte:
            return _blocks(bits, 2, 3, axis=axis, block=block)
        return QuantizedInput(scales=(2,), zero=3, axis=axis, block=block)
    if operator == "QMoE" and index in _EXPERTS and _has_plain_experts(node):
        scales, zero, name = _EXPERTS[index]
        own = integer(node, f"{name}_expert_weight_bits", integer(node, "expert_weight_bits", 4))
        axis = 2 if block > 0 else 1
        return _blocks(own, scales, zero, axis=axis, block=block, is_leading=block <= 0)
    return None


def _has_plain_experts(node: NodeProto) -> bool:
    """Return whether experts are integers in their own order, not in that of one kind of processor."""
    is_plain = integer(node, "weights_prepacked", -1) == 0
    return is_plain and text(node, "quant_type", "int") == "int"


def _blocks(
    bits: int, scales: int, zero: int, **rest: int | tuple[int, ...]
) -> QuantizedInput | None:
    if bits not in (2, 4, 8):
        return None
    middle = float(2 ** (bits - 1))
    return QuantizedInput(scales=(scales,), zero=zero, bits=bits, default_zero=middle, **rest)  # type: ignore[arg-type]


def true_count(node: NodeProto, size: int, value_bits: int) -> int:
    """Return how many weights are packed in `size` stored integers of `value_bits` bits, as a node says."""
    stated: dict[str, int] = {a.name: a.i for a in node.attribute if a.type == AttributeProto.INT}
    count = stated.get("N", 0) * stated.get("K", 0)
    if 0 < count <= size * value_bits:
        return count
    if node.op_type == "MatMulBlockQuantizedFp4Weight":
        return 2 * size
    bits = next((stated[name] for name in _BIT_ATTRIBUTES if name in stated), 0)
    return size * value_bits // bits if 0 < bits < value_bits else size


_BIT_ATTRIBUTES = ("bits", "expert_weight_bits", "w_bits", "wbits", "num_bits", "weight_bits")
