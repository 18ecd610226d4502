"""What ONNX's operators do to channels.

Whatever is not known, or cannot be proved from shapes, is opaque: then nothing is permuted across it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from sane_onnx.attributes import has, integer, integers
from sane_onnx.proto import MICROSOFT, STANDARD
from sane_onnx.shapes import Shape
from sane_plugins.weights import JOIN, OPAQUE, POINTWISE, SPATIAL, ChannelOp, ChannelOps, Kind

# Integer constants by name, where they are few.
Numbers = Mapping[str, Sequence[int]]

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
_MICROSOFT = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")  # some add a bias first
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
    """One node with what is known about the values it reads and gives."""

    node: NodeProto
    shapes: Mapping[str, Shape]
    numbers: Numbers

    @property
    def read(self) -> Shape | None:
        """Return the shape of the first input."""
        return self.shapes.get(self.node.input[0])

    @property
    def given(self) -> Shape | None:
        """Return the shape of the first output."""
        return self.shapes.get(self.node.output[0])

    def axes(self) -> Sequence[int] | None:
        """Return the axes that an attribute, or the second input in later versions, names."""
        second = self.node.input[1] if len(self.node.input) > 1 else ""
        given = integers(self.node, "axes")
        return self.numbers.get(second) if given is None else given

    def from_end(self, axes: Sequence[int] | None, shape: Shape | None) -> tuple[int, ...]:
        """Count axes from the end of a shape; () where they cannot be counted."""
        if not axes or (shape is None and max(axes) >= 0):
            return ()
        return tuple(a if a < 0 else a - len(shape or ()) for a in axes)


def describe(call: OperatorCall) -> ChannelOps:
    """Return the ops of a node; the last one gives the node's first output."""
    if call.node.domain == MICROSOFT and call.node.op_type in _MICROSOFT:
        return JOIN if is_join(call.node) else POINTWISE
    rule = _RULES.get(call.node.op_type) if call.node.domain in STANDARD else None
    return rule(call) if rule is not None and call.node.input else OPAQUE


def is_join(node: NodeProto) -> bool:
    """Tell whether a known node combines all its inputs; the others follow their first one."""
    if node.domain == MICROSOFT:
        return node.op_type in _MICROSOFT and len([name for name in node.input if name]) > 1
    return node.domain in STANDARD and node.op_type in (*_JOINS, "Concat")


def gives_shape(node: NodeProto) -> bool:
    """Tell whether a node's output depends on its input's shape only."""
    return node.domain in STANDARD and node.op_type in ("Shape", "Size")


def _along(kind: Kind, axes: tuple[int, ...]) -> ChannelOps:
    return (ChannelOp(kind, dims=axes),) if axes else OPAQUE


def _join(call: OperatorCall) -> ChannelOps:
    # Before operator set 7 an axis said where the second input belongs.
    return OPAQUE if has(call.node, "axis") else JOIN


def _concat(call: OperatorCall) -> ChannelOps:
    axis = integer(call.node, "axis", 1)
    return _along("concat", call.from_end([axis], call.given))


def _flatten(call: OperatorCall) -> ChannelOps:
    if call.read is None or integer(call.node, "axis", 1) % max(len(call.read), 1) != 1:
        return OPAQUE
    return POINTWISE if len(call.read) == 2 else (ChannelOp("flatten", dims=(1,)),)


def _reshape(call: OperatorCall) -> ChannelOps:
    """Recognise what changes nothing, and (N, ...) -> (N, all the rest) where sizes prove it."""
    read, given = call.read, call.given
    if read is None or given is None or len(read) < 2:
        return OPAQUE
    if None not in read[1:] and read[1:] == given[1:]:
        return POINTWISE
    sizes = [size for size in read[1:] if size is not None]
    is_rest = len(sizes) == len(read) - 1 and given[1:] == (_product(sizes),)
    shape = call.numbers.get(call.node.input[1]) if len(call.node.input) > 1 else None
    keeps_batch = shape == [0, -1] and not integer(call.node, "allowzero", 0)
    return (ChannelOp("flatten", dims=(1,)),) if is_rest or keeps_batch else OPAQUE


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _transpose(call: OperatorCall) -> ChannelOps:
    order: Sequence[int] | None = integers(call.node, "perm")
    if order is None and call.read is not None:
        order = range(len(call.read))[::-1]
    order = tuple(order or ())
    return _along("permute", order if sorted(order) == list(range(len(order))) else ())


def _squeeze(call: OperatorCall) -> ChannelOps:
    return _along("squeeze", call.from_end(call.axes(), call.read))


def _unsqueeze(call: OperatorCall) -> ChannelOps:
    return _along("unsqueeze", call.from_end(call.axes(), call.given))


def _reduce(call: OperatorCall) -> ChannelOps:
    axes = call.from_end(call.axes(), call.read)
    kept = _along("reduce", axes)
    return (
        kept
        if integer(call.node, "keepdims", 1) or not axes
        else (*kept, ChannelOp("squeeze", dims=axes))
    )


def _rescale(call: OperatorCall) -> ChannelOps:
    """One scale for all channels does not depend on their order."""
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
    "DequantizeLinear": _rescale,
    "DynamicQuantizeLinear": lambda _: POINTWISE,
    "QuantizeLinear": _rescale,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
