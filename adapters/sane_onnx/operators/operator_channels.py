"""Channel effects of ONNX operators.

An unknown operator, or one whose effect the shapes do not prove, is opaque: nothing is permuted across it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.model_file.shapes import Shape
from sane_onnx.operators import attributes
from sane_plugins.weights import JOIN, OPAQUE, POINTWISE, SPATIAL, ChannelOp, ChannelOps, Kind

# Values of short integer constants, by name.
IntegerLists = Mapping[str, Sequence[int]]

_POINTWISE = (
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
)
_MICROSOFT_POINTWISE = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")  # some add a bias first
_JOINS = (
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
)
_POOLS = (
    "AveragePool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "LpPool",
    "MaxPool",
)
_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


@dataclass(frozen=True)
class OperatorCall:
    """A node with the known shapes and integer values of the model."""

    node: NodeProto
    shapes: Mapping[str, Shape]
    integers: IntegerLists

    @property
    def input_shape(self) -> Shape | None:
        """Return the shape of the first input."""
        return self.shapes.get(self.node.input[0])

    @property
    def output_shape(self) -> Shape | None:
        """Return the shape of the first output."""
        return self.shapes.get(self.node.output[0])

    def axes(self) -> Sequence[int] | None:
        """Return the attribute `axes`, which is the second input in later operator sets."""
        second = self.node.input[1] if len(self.node.input) > 1 else ""
        axes = attributes.integers(self.node, "axes")
        return self.integers.get(second) if axes is None else axes

    def from_end(self, axes: Sequence[int] | None, shape: Shape | None) -> tuple[int, ...]:
        """Return axes as negative indices; () where there are none or the rank is unknown."""
        if not axes or (shape is None and max(axes) >= 0):
            return ()
        return tuple(a if a < 0 else a - len(shape or ()) for a in axes)


def channel_ops(call: OperatorCall) -> ChannelOps:
    """Return what a node does to channels; the last op yields the node's first output."""
    if call.node.domain == MICROSOFT and call.node.op_type in _MICROSOFT_POINTWISE:
        return JOIN if is_join(call.node) else POINTWISE
    rule = _RULES.get(call.node.op_type) if call.node.domain in STANDARD else None
    return rule(call) if rule is not None and call.node.input else OPAQUE


def is_join(node: NodeProto) -> bool:
    """Return whether a known node combines all its inputs; the others follow their first input."""
    if node.domain == MICROSOFT:
        return (
            node.op_type in _MICROSOFT_POINTWISE and len([name for name in node.input if name]) > 1
        )
    return node.domain in STANDARD and node.op_type in (*_JOINS, "Concat")


def _op_along(kind: Kind, axes: tuple[int, ...]) -> ChannelOps:
    return (ChannelOp(kind, dims=axes),) if axes else OPAQUE


def _join(call: OperatorCall) -> ChannelOps:
    # Before operator set 7, an attribute gave the axis to align the second input with.
    return OPAQUE if attributes.has(call.node, "axis") else JOIN


def _concat(call: OperatorCall) -> ChannelOps:
    axis = attributes.integer(call.node, "axis", 1)
    return _op_along("concat", call.from_end([axis], call.output_shape))


def _flatten(call: OperatorCall) -> ChannelOps:
    if (
        call.input_shape is None
        or attributes.integer(call.node, "axis", 1) % max(len(call.input_shape), 1) != 1
    ):
        return OPAQUE
    return POINTWISE if len(call.input_shape) == 2 else (ChannelOp("flatten", dims=(1,)),)


def _reshape(call: OperatorCall) -> ChannelOps:
    """Recognise the identity, and flattening (N, ...) -> (N, product of the rest) where sizes prove it."""
    input_shape, output_shape = call.input_shape, call.output_shape
    if input_shape is None or output_shape is None or len(input_shape) < 2:
        return OPAQUE
    if None not in input_shape[1:] and input_shape[1:] == output_shape[1:]:
        return POINTWISE
    sizes = [size for size in input_shape[1:] if size is not None]
    is_rest = len(sizes) == len(input_shape) - 1 and output_shape[1:] == (_product(sizes),)
    shape = call.integers.get(call.node.input[1]) if len(call.node.input) > 1 else None
    keeps_batch = shape == [0, -1] and not attributes.integer(call.node, "allowzero", 0)
    return (ChannelOp("flatten", dims=(1,)),) if is_rest or keeps_batch else OPAQUE


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _transpose(call: OperatorCall) -> ChannelOps:
    order: Sequence[int] | None = attributes.integers(call.node, "perm")
    if order is None and call.input_shape is not None:
        order = range(len(call.input_shape))[::-1]
    order = tuple(order or ())
    return _op_along("permute", order if sorted(order) == list(range(len(order))) else ())


def _squeeze(call: OperatorCall) -> ChannelOps:
    return _op_along("squeeze", call.from_end(call.axes(), call.input_shape))


def _unsqueeze(call: OperatorCall) -> ChannelOps:
    return _op_along("unsqueeze", call.from_end(call.axes(), call.output_shape))


def _reduce(call: OperatorCall) -> ChannelOps:
    axes = call.from_end(call.axes(), call.input_shape)
    reduced = _op_along("reduce", axes)
    return (
        reduced
        if attributes.integer(call.node, "keepdims", 1) or not axes
        else (*reduced, ChannelOp("squeeze", dims=axes))
    )


def _quantize(call: OperatorCall) -> ChannelOps:
    """Per-tensor scales do not depend on the order of channels."""
    scale = call.shapes.get(call.node.input[1]) if len(call.node.input) > 1 else None
    return POINTWISE if scale is not None and all(size == 1 for size in scale) else OPAQUE


_Rule = Callable[[OperatorCall], ChannelOps]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_POINTWISE, lambda _: POINTWISE),
    **dict.fromkeys(_JOINS, _join),
    **dict.fromkeys(_POOLS, lambda _: (ChannelOp("pointwise", dims=SPATIAL),)),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "DequantizeLinear": _quantize,
    "DynamicQuantizeLinear": lambda _: POINTWISE,
    "QuantizeLinear": _quantize,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
