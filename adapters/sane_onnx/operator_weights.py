"""Which of a node's inputs are its weights, and which of their axes holds the output channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from sane_onnx.attributes import integer
from sane_onnx.proto import MICROSOFT, STANDARD
from sane_onnx.shapes import Shape
from sane_onnx.views import View
from sane_plugins.weights import Kind, Param, Role

_MOST_AXES = 8
_NORM: tuple[Role, ...] = ("scale", "shift", "running_mean", "running_var")


@dataclass(frozen=True)
class Weights:
    """What makes a node a layer with weights; `data` is the value that it works on.

    `is_pinned` says that the channels of the tensors as they are stored are not followed.
    """

    kind: Kind
    params: tuple[Param, ...]
    data: str = ""
    groups: int = 1
    dims: tuple[int, ...] = ()
    is_pinned: bool = False


Given = Sequence[View]
_Rule = Callable[[NodeProto, Given, int | None], Weights | None]


def weights_of(
    node: NodeProto, constants: Mapping[str, View], shapes: Mapping[str, Shape]
) -> Weights | None:
    """Return a node's weights; None where it takes none, or not all of them are constants.

    Input 0 is the data and the others are weights, unless `_PLACES` says otherwise.
    """
    known = _RULES if node.domain in STANDARD else _MORE if node.domain == MICROSOFT else {}
    rule = known.get(node.op_type)
    if rule is None or len(node.input) < 2:
        return None
    first, places = _PLACES.get(node.op_type, (0, range(1, len(node.input))))
    data = node.input[first]
    others = [node.input[i] for i in places if i < len(node.input) and node.input[i]]
    given = [constants[name] for name in others if name in constants]
    if data in constants or not given or len(given) < len(others):
        return None
    found = rule(node, given, len(shapes[data]) if data in shapes else None)
    return found and replace(found, data=data)


def outputs(weight: Param) -> int:
    """Return how many outputs a matrix has."""
    return weight.shape[weight.axis]


def _conv(node: NodeProto, given: Given, _: int | None) -> Weights | None:
    is_transposed = node.op_type == "ConvTranspose"
    params = _with_bias(given, int(is_transposed), 3)
    kind: Kind = "transposed_conv" if is_transposed else "conv"
    groups = integer(node, "group", 1)
    if params is None or groups < 1 or params[0].shape[0] % groups:
        return None
    view = given[0]
    is_pinned = not view.is_plain and not view.is_flipped
    return Weights(kind, params, groups=groups, is_pinned=is_pinned)


def _gemm(node: NodeProto, given: Given, _: int | None) -> Weights | None:
    params = _with_bias(given, int(not integer(node, "transB", 0)), 2)
    is_pinned = bool(integer(node, "transA", 0))
    return Weights("linear", params, is_pinned=is_pinned) if params else None


def _matmul(_: NodeProto, given: Given, __: int | None) -> Weights | None:
    params = _with_bias(given, 1, 2)
    return Weights("linear", params) if params else None


def _with_bias(given: Given, axis: int, rank: int) -> tuple[Param, ...] | None:
    """Return weight and bias with the weight's output axis; None where they are no such pair."""
    view = given[0]
    is_matrix = len(view.shape) >= rank and (rank > 2 or len(view.shape) == rank)
    if not is_matrix or any(len(x.param.shape) != 1 for x in given[1:]):
        return None
    weight = replace(view.param, role="weight", axis=view.axes[axis] or 0)
    return (weight, *(replace(x.param, role="bias") for x in given[1:]))


def _norm_at(place: int) -> _Rule:
    """Make the rule of a norm whose vectors belong to one axis of the data."""

    def rule(_: NodeProto, given: Given, rank: int | None) -> Weights | None:
        params = _named(given)
        if rank is None or rank <= place or any(len(p.shape) != 1 for p in params):
            return None
        return Weights("norm", params, dims=(place - rank,))

    return rule


def _layer_norm(node: NodeProto, given: Given, rank: int | None) -> Weights | None:
    start = integer(node, "axis", -1)
    if any(not x.is_plain for x in given):
        return None
    if start >= 0:
        if rank is None or start >= rank:
            return None
        start -= rank
    if start < -(rank or _MOST_AXES):
        return None
    return Weights("norm", _named(given), dims=tuple(range(start, 0)))


def _named(given: Given) -> tuple[Param, ...]:
    return tuple(replace(x.param, role=role) for x, role in zip(given, _NORM, strict=False))


def _table(node: NodeProto, given: Given, _: int | None) -> Weights | None:
    table = given[0]
    if integer(node, "axis", 0) or len(table.param.shape) != 2 or not table.is_plain:
        return None
    return Weights("embedding", (replace(table.param, role="weight"),))


def _group_norm(node: NodeProto, given: Given, rank: int | None) -> Weights | None:
    groups = integer(node, "num_groups", 1)
    params = _named(given)
    if rank is None or groups < 1 or any(len(p.shape) != 1 for p in params):
        return None
    # Up to operator set 20 there was one scale for each group, which is not followed.
    return Weights(
        "norm", params, groups=groups, dims=(1 - rank,), is_pinned=params[0].size == groups
    )


def _gates(_: NodeProto, given: Given, __: int | None) -> Weights | None:
    """Take matrices (directions, gates x hidden, inputs) and biases (directions, gates x hidden)."""
    params = tuple(
        replace(x.param, role="weight" if len(x.shape) > 2 else "bias", axis=x.axes[1] or 0)
        for x in given
        if len(x.shape) > 1
    )
    return Weights("recurrent", params, is_pinned=True) if len(params) == len(given) else None


def _attention(node: NodeProto, given: Given, rank: int | None) -> Weights | None:
    found = _matmul(node, given, rank)
    return found and replace(found, kind="attention", is_pinned=True)


def _blocks(_: NodeProto, given: Given, __: int | None) -> Weights | None:
    """Take a matrix kept as (outputs, inputs) in quantised blocks, which hold its inputs together."""
    params = _with_bias(given, 0, 2)
    return Weights("linear", params, is_pinned=True) if params else None


_RULES: Mapping[str, _Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _norm_at(1),
    "InstanceNormalization": _norm_at(1),
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Gather": _table,
    "GroupNormalization": _group_norm,
    "LSTM": _gates,
    "GRU": _gates,
    "RNN": _gates,
    "ConvInteger": _conv,
    "MatMulInteger": _matmul,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
}
_MORE: Mapping[str, _Rule] = {
    "Attention": _attention,
    "QAttention": _attention,
    "DynamicQuantizeMatMul": _matmul,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _blocks,
    "QGemm": _gemm,
}
# The input with the data, and those with weights; all others set how the node works.
_PLACES: Mapping[str, tuple[int, Sequence[int]]] = {
    "Attention": (0, (1, 2)),
    "ConvInteger": (0, (1,)),
    "DynamicQuantizeMatMul": (0, (1, 4)),
    "FusedConv": (0, (1, 2)),
    "GRU": (0, (1, 2, 3)),
    "Gather": (1, (0,)),
    "LSTM": (0, (1, 2, 3, 7)),
    "MatMulInteger": (0, (1,)),
    "MatMulIntegerToFloat": (0, (1, 6)),
    "MatMulNBits": (0, (1, 5)),
    "QAttention": (0, (1, 2)),
    "QGemm": (0, (3, 6)),
    "QLinearConv": (0, (3, 8)),
    "QLinearMatMul": (0, (3,)),
    "RNN": (0, (1, 2, 3)),
}
