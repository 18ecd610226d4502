"""Channel effects of torch's functions and methods; register new ones in `_BY_NAME`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from sane_plugins.runtime import drawing_from
from sane_plugins.weights.layers import Kind
from sane_plugins.weights.tracing.channel_ops import (
    JOIN,
    OPAQUE,
    POINTWISE,
    SPATIAL,
    ChannelOp,
    ChannelOps,
)

_POOL_CALLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
ELEMENTWISE = (
    "abs",
    "add",
    "alpha_dropout",
    "atan",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "clone",
    "contiguous",
    "cos",
    "detach",
    "div",
    "double",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "erf",
    "exp",
    "expand_as",
    "expm1",
    "feature_alpha_dropout",
    "float",
    "fmod",
    "gelu",
    "half",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "iadd",
    "imul",
    "isub",
    "itruediv",
    "leaky_relu",
    "log",
    "log1p",
    "logsigmoid",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "multiply",
    "neg",
    "negative",
    "pow",
    "prelu",
    "reciprocal",
    "relu",
    "relu6",
    "rrelu",
    "rsqrt",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "softshrink",
    "softsign",
    "sqrt",
    "square",
    "sub",
    "subtract",
    "tanh",
    "tanhshrink",
    "threshold",
    "to",
    "true_divide",
    "truediv",
    "where",
)
# Symmetric in the channels, whichever axis they normalise.
_NORMALIZING = ("softmax", "log_softmax", "softmin", "normalize")
_REDUCING = ("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp")


def is_scalar(node: fx.Node) -> bool:
    """Return whether a node is a shape, a number or a check rather than a tensor. Call in graph order."""
    node.meta["is_scalar"] = _queries_shape(node) or _computes_scalar(node)
    return bool(node.meta["is_scalar"])


def _queries_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel", "is_floating_point")
    if node.op != "call_function" or node.target is not getattr:
        return node.target is torch._assert
    return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")


def _computes_scalar(node: fx.Node) -> bool:
    inputs_scalar = [source.meta.get("is_scalar", False) for source in node.all_input_nodes]
    is_arithmetic = getattr(node.target, "__module__", None) in ("_operator", "math")
    return (
        node.op == "call_function" and is_arithmetic and bool(inputs_scalar) and all(inputs_scalar)
    )


class FunctionCall:
    """A call of a function or method, with arguments by position or name."""

    def __init__(self, node: fx.Node, inputs: int) -> None:
        self.node, self.inputs = node, inputs

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument; the tensor itself is argument 0."""
        args, kwargs = self.node.args, self.node.kwargs
        return args[index] if len(args) > index else kwargs.get(name, default)

    def axes(self, index: int, name: str) -> tuple[int, ...]:
        """Return an argument of axes, given as one int, several ints or a sequence; () for anything else."""
        value = self.get(index, name)
        if isinstance(value, int) and len(self.node.args) > index + 1:
            value = self.node.args[index:]
        axes = tuple(value) if isinstance(value, list | tuple) else (value,)
        return axes if all(type(axis) is int for axis in axes) else ()


def function_channel_ops(node: fx.Node, inputs: int) -> ChannelOps:
    """Return the operations of a function or method call that reads `inputs` tensors."""
    rule = (_METHODS if node.op == "call_method" else _FUNCTIONS).get(node.target)
    if rule is not None and inputs:
        return rule(FunctionCall(node, inputs))
    return POINTWISE if inputs == 1 and _is_identity(node) else OPAQUE


def _is_identity(node: fx.Node) -> bool:
    """Return whether an unknown function returns its input unchanged (as drop path does in evaluation)."""
    if node.op != "call_function" or not callable(node.target):
        return False
    probe = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    before = probe.clone()
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: probe)
    try:
        with drawing_from(torch.Generator()):
            return node.target(*args, **kwargs) is probe and torch.equal(probe, before)
    except Exception:  # the function may raise anything for arguments it was not made for
        return False


def _elementwise(call: FunctionCall) -> ChannelOps:
    return POINTWISE if call.inputs == 1 else JOIN


def _prelu(_: FunctionCall) -> ChannelOps:
    return POINTWISE


def _unary(call: FunctionCall) -> ChannelOps:
    return POINTWISE if call.inputs == 1 else OPAQUE


def _pointwise_along(*dims: int) -> Callable[[FunctionCall], ChannelOps]:
    return lambda call: (ChannelOp("pointwise", dims=dims),) if call.inputs == 1 else OPAQUE


def _pad(call: FunctionCall) -> ChannelOps:
    widths = call.get(1, "pad")
    if call.inputs > 1 or not isinstance(widths, list | tuple):
        return OPAQUE
    return (ChannelOp("pointwise", dims=tuple(range(-(len(widths) // 2), 0))),)


def _concat(call: FunctionCall) -> ChannelOps:
    axis = call.get(1, "dim", 0)
    return (ChannelOp("concat", dims=(axis,)),) if type(axis) is int else OPAQUE


def _flatten(call: FunctionCall) -> ChannelOps:
    start, end = call.get(1, "start_dim", 0), call.get(2, "end_dim", -1)
    return (ChannelOp("flatten", dims=(start,)),) if type(start) is int and end == -1 else OPAQUE


def _reshape(call: FunctionCall) -> ChannelOps:
    """Recognise the two common forms of flatten: (batch size, -1) and (-1, features)."""
    arguments = call.node.args[1:]
    shape = (
        tuple(arguments[0])
        if len(arguments) == 1 and isinstance(arguments[0], list | tuple)
        else arguments
    )
    if len(shape) != 2:
        return OPAQUE
    keeps_batch = shape[1] == -1 and _is_batch_size(shape[0])
    keeps_features = shape[0] == -1 and type(shape[1]) is int
    return (ChannelOp("flatten", dims=(1,)),) if keeps_batch or keeps_features else OPAQUE


def _is_batch_size(size: Any) -> bool:
    """Return whether a node is the first size of a tensor, which is the batch size of any tensor."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return size.args[1:] == (0,)
    is_item = size.target is operator.getitem and size.args[1:] == (0,)
    return is_item and isinstance(size.args[0], fx.Node) and _queries_shape(size.args[0])


def _reduce(call: FunctionCall) -> ChannelOps:
    axes, keep = call.axes(1, "dim"), call.node.kwargs.get("keepdim", call.get(2, "keepdim", False))
    if not axes or call.inputs > 1 or len(call.node.args) > 3 or type(keep) is not bool:
        return OPAQUE
    reduced = ChannelOp("reduce", dims=axes)
    return (reduced,) if keep else (reduced, ChannelOp("squeeze", dims=axes))


def _with_axes(kind: Kind, index: int, name: str) -> Callable[[FunctionCall], ChannelOps]:
    def rule(call: FunctionCall) -> ChannelOps:
        axes = call.axes(index, name)
        return (ChannelOp(kind, dims=axes),) if axes and call.inputs == 1 else OPAQUE

    return rule


def _transpose(call: FunctionCall) -> ChannelOps:
    axes = call.get(1, "dim0"), call.get(2, "dim1")
    return (ChannelOp("transpose", dims=axes),) if all(type(a) is int for a in axes) else OPAQUE


def _conv(kind: Kind, position: int) -> Callable[[FunctionCall], ChannelOps]:
    def rule(call: FunctionCall) -> ChannelOps:
        groups = call.get(position, "groups", 1)
        return (ChannelOp(kind, groups=groups),) if type(groups) is int else OPAQUE

    return rule


def _fixed(kind: Kind, *dims: int) -> Callable[[FunctionCall], ChannelOps]:
    return lambda _: (ChannelOp(kind, dims=dims),)


def _layer_norm(call: FunctionCall) -> ChannelOps:
    shape = call.get(1, "normalized_shape")
    if not isinstance(shape, list | tuple):
        return OPAQUE
    return (ChannelOp("norm", dims=tuple(range(-len(shape), 0))),)


def _group_norm(call: FunctionCall) -> ChannelOps:
    count = call.get(1, "num_groups")
    return (ChannelOp("norm", groups=count, dims=(1,)),) if type(count) is int else OPAQUE


_Rule = Callable[[FunctionCall], ChannelOps]
_BY_NAME: dict[str, _Rule] = {
    **dict.fromkeys((n + end for n in ELEMENTWISE for end in ("", "_")), _elementwise),
    **dict.fromkeys(_NORMALIZING, _unary),
    **dict.fromkeys(_REDUCING, _reduce),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys((f"conv{k}d" for k in (1, 2, 3)), _conv("conv", 6)),
    **{f"conv_transpose{k}d": _conv("transposed_conv", 6) for k in (1, 2, 3)},
    **{f"{n}{k}d": _pointwise_along(*range(-k, 0)) for n in _POOL_CALLS for k in (1, 2, 3)},
    "prelu": _prelu,
    "interpolate": _pointwise_along(*SPATIAL),
    "pad": _pad,
    "flatten": _flatten,
    "reshape": _reshape,
    "view": _reshape,
    "permute": _with_axes("permute", 1, "dims"),
    "squeeze": _with_axes("squeeze", 1, "dim"),
    "unsqueeze": _with_axes("unsqueeze", 1, "dim"),
    "transpose": _transpose,
    "swapaxes": _transpose,
    "linear": _fixed("linear"),
    "embedding": lambda _: (ChannelOp("embedding"),),
    "batch_norm": _fixed("norm", 1),
    "instance_norm": _fixed("norm", 1),
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
}


def _rules_by_function(namespaces: Iterable[Any]) -> dict[Any, _Rule]:
    """Return the rules by function object."""
    return {
        getattr(namespace, name): rule
        for namespace in namespaces
        for name, rule in _BY_NAME.items()
        if hasattr(namespace, name)
    }


_METHODS: dict[Any, _Rule] = {n: rule for n, rule in _BY_NAME.items() if hasattr(torch.Tensor, n)}
_FUNCTIONS = _rules_by_function((torch, functional, torch.special, operator))
