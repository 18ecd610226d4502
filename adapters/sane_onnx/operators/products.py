"""Multiply-accumulates of operators, from the shapes of what they read and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.operators import attributes

Sizes = Callable[[str], tuple[int, ...]]
"""Returns the shape of a value by its name, and raises where it is not known."""


@dataclass(frozen=True)
class Products:
    """MACs of one node, and how many values its products give."""

    macs: int
    values: int


def products(node: NodeProto, sizes: Sizes) -> Products | None:
    """Return what a node multiplies; None for an operator of no products. Raises what `sizes` raises."""
    rule = _RULES.get(node.op_type) if node.domain in (*STANDARD, MICROSOFT) else None
    return None if rule is None else rule(node, sizes)


def is_uncounted(node: NodeProto) -> bool:
    """Return whether a node may multiply and add in a way that has no rule here."""
    if node.domain in STANDARD:
        return node.op_type in ("DFT", "Det", "STFT")
    return node.domain != MICROSOFT or node.op_type not in (*_RULES, *_WITHOUT_PRODUCTS)


def _convolution(weight: int) -> _Rule:
    def rule(node: NodeProto, sizes: Sizes) -> Products:
        values = prod(sizes(node.output[0]))
        return Products(values * prod(sizes(node.input[weight])[1:]), values)

    return rule


def _transposed_convolution(node: NodeProto, sizes: Sizes) -> Products:
    macs = prod(sizes(node.input[0])) * prod(sizes(node.input[1])[1:])
    return Products(macs, prod(sizes(node.output[0])))


def _matmul(node: NodeProto, sizes: Sizes) -> Products:
    first = sizes(node.input[0])
    is_transposed = len(first) > 1 and attributes.integer(node, "transA", 0)
    values = prod(sizes(node.output[0]))
    return Products(values * first[-2 if is_transposed else -1], values)


def _einsum(node: NodeProto, sizes: Sizes) -> Products:
    values = prod(sizes(node.output[0]))
    shapes = [sizes(name) for name in node.input]
    terms = attributes.text(node, "equation", "").replace(" ", "").partition("->")[0].split(",")
    if len(terms) != len(shapes) or "." in "".join(terms):
        raise ValueError("an equation with an ellipsis, or of another number of operands")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape):
            raise ValueError("an equation of other ranks")
        for label, size in zip(term, shape, strict=True):
            lengths[label] = max(lengths.get(label, 1), size)
    return Products(prod(lengths.values()) * (len(shapes) - 1), values)


def _recurrent(node: NodeProto, sizes: Sizes) -> Products:
    steps = prod(sizes(node.input[0])[:2])  # of all sequences, in either layout
    weights = [sizes(name) for name in node.input[1:3]]
    return Products(
        steps * sum(map(prod, weights)),
        steps * sum(directions * rows for directions, rows, _ in weights),
    )


def _attention(node: NodeProto, sizes: Sizes) -> Products:
    """Return those of scores and of their products with values; inputs are (B, H, S, D) or (B, S, H x D)."""
    query, key, value = (sizes(name) for name in node.input[:3])
    past = sizes(node.input[4])[-2] if len(node.input) > 4 and node.input[4] else 0
    if len(query) == 4:
        batch, heads, rows, width = query
        columns, out_width = key[-2] + past, value[-1]
    else:
        heads = attributes.integer(node, "q_num_heads", 0)
        of_values = attributes.integer(node, "kv_num_heads", 0)
        if not heads or not of_values or len(query) != 3:
            raise ValueError("attention without a number of heads")
        (batch, rows, width), columns = query, key[1] + past
        width, out_width = width // heads, value[-1] // of_values
    scores = batch * heads * rows * columns
    return Products(scores * (width + out_width), scores + batch * heads * rows * out_width)


def _packed_attention(node: NodeProto, sizes: Sizes) -> Products:
    """Follow Microsoft's Attention, which projects its input (B, S, E) to queries, keys and values first."""
    (batch, rows, _), weight = sizes(node.input[0]), sizes(node.input[1])
    heads = attributes.integer(node, "num_heads", 0)
    if attributes.integers(node, "qkv_hidden_sizes") or (len(node.input) > 4 and node.input[4]):
        raise ValueError("attention with widths or past keys of its own")
    width, scores = weight[1] // 3, batch * heads * rows * rows
    values = scores + batch * rows * (weight[1] + width)
    return Products(batch * rows * prod(weight) + 2 * batch * rows * rows * width, values)


_Rule = Callable[[NodeProto, Sizes], Products]


def _attention_of_either(node: NodeProto, sizes: Sizes) -> Products:
    return (_packed_attention if node.domain == MICROSOFT else _attention)(node, sizes)


_RULES: Mapping[str, _Rule] = {
    "Attention": _attention_of_either,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _convolution(1),
    "DynamicQuantizeMatMul": _matmul,
    "Einsum": _einsum,
    "FusedConv": _convolution(1),
    "FusedGemm": _matmul,
    "FusedMatMul": _matmul,
    "GRU": _recurrent,
    "Gemm": _matmul,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _matmul,
    "QGemm": _matmul,
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
    "TransposeMatMul": _matmul,
}
# Microsoft's operators that add no products.
_WITHOUT_PRODUCTS = (
    *("BiasGelu", "BiasSoftmax", "DequantizeLinear", "FastGelu", "FusedActivation", "Gelu"),
    *("QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool"),
    *("QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear"),
    *("QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
