"""Weights of ONNX operators: their input indices, roles, and axes of output channels."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.model_file.shapes import Shape
from sane_onnx.operators.attributes import integer
from sane_onnx.quantization.weight_views import View
from sane_plugins.weights import Kind, Param, Role

_MAX_RANK = 8
_NORM_ROLES: tuple[Role, ...] = ("scale", "shift", "running_mean", "running_var")


@dataclass(frozen=True)
class NodeWeights:
    """Weights of a node, and `data`, the input that they are applied to.

    `is_opaque`: channels cannot be followed through the stored tensors, so none is permuted.
    `added` is a value that the node adds to its output.
    """

    kind: Kind
    params: tuple[Param, ...]
    data: str = ""
    groups: int = 1
    dims: tuple[int, ...] = ()
    is_opaque: bool = False
    added: str = ""


Views = Sequence[View]
_Rule = Callable[[NodeProto, Views, int | None], NodeWeights | None]


def weights_of(
    node: NodeProto,
    constants: Mapping[str, View],
    parts: Mapping[str, tuple[Param, ...]],
    shapes: Mapping[str, Shape],
    settings: Container[str],
) -> NodeWeights | None:
    """Return a node's weights; None where it has none, or not all of them are constants.

    Input 0 is the data and the others are weights, unless `_INPUTS` says otherwise. `parts` are
    the weights that other values are cut from, `settings` values that depend on no channel.
    """
    rules = (
        _RULES if node.domain in STANDARD else _MICROSOFT_RULES if node.domain == MICROSOFT else {}
    )
    rule = rules.get(node.op_type)
    if rule is None or len(node.input) < 2:
        return None
    first, indices = _INPUTS.get(node.op_type, (0, range(1, len(node.input))))
    data = node.input[first]
    others = [node.input[i] for i in indices if i < len(node.input) and node.input[i]]
    # A bias of zeros, which exporters compute, is none.
    others = [name for name in others if name in constants or name not in settings]
    views = [
        view
        for name in others
        for view in ([constants[name]] if name in constants else map(View.of, parts.get(name, ())))
    ]
    is_known = all(name in constants or name in parts for name in others)
    if data in constants or not views or not is_known:
        return None
    weights = rule(node, views, len(shapes[data]) if data in shapes else None)
    if weights is None:
        return None
    place = _ADDED.get(node.op_type, len(node.input))
    added = node.input[place] if place < len(node.input) else ""
    # What else it computes with is not followed.
    known = {data, added, *(node.input[i] for i in indices if i < len(node.input))}
    is_opaque = weights.is_opaque or any(
        name and name not in known and name not in settings for name in node.input
    )
    return replace(weights, data=data, added=added, is_opaque=is_opaque)


def output_count(weight: Param) -> int:
    """Return the number of output channels of a weight."""
    return weight.shape[weight.axis]


def _conv(node: NodeProto, views: Views, _: int | None) -> NodeWeights | None:
    is_transposed = node.op_type == "ConvTranspose"
    params = _with_bias(views, int(is_transposed), 3)
    kind: Kind = "transposed_conv" if is_transposed else "conv"
    groups = integer(node, "group", 1)
    if params is None or groups < 1 or params[0].shape[0] % groups:
        return None
    view = views[0]
    is_opaque = not view.is_identity and not view.is_transposed
    return NodeWeights(kind, params, groups=groups, is_opaque=is_opaque)


def _gemm(node: NodeProto, views: Views, _: int | None) -> NodeWeights | None:
    params = _with_bias(views, int(not integer(node, "transB", 0)), 2)
    is_opaque = bool(integer(node, "transA", 0))
    return NodeWeights("linear", params, is_opaque=is_opaque) if params else None


def _matmul(_: NodeProto, views: Views, __: int | None) -> NodeWeights | None:
    params = _with_bias(views, 1, 2)
    return NodeWeights("linear", params) if params else None


def _with_bias(views: Views, axis: int, rank: int) -> tuple[Param, ...] | None:
    """Return weight and bias with the weight's output axis; None where their ranks do not fit."""
    view = views[0]
    is_matrix = len(view.shape) >= rank and (rank > 2 or len(view.shape) == rank)
    if not is_matrix or any(len(x.param.shape) != 1 for x in views[1:]):
        return None
    weight = replace(view.param, role="weight", axis=view.axes[axis] or 0)
    return (weight, *(replace(x.param, role="bias") for x in views[1:]))


def _norm_along(axis: int) -> _Rule:
    """Return the rule for a norm with one parameter per index of an axis of the data."""

    def rule(_: NodeProto, views: Views, rank: int | None) -> NodeWeights | None:
        params = _norm_params(views)
        if rank is None or rank <= axis or any(len(p.shape) != 1 for p in params):
            return None
        return NodeWeights("norm", params, dims=(axis - rank,))

    return rule


def _layer_norm(node: NodeProto, views: Views, rank: int | None) -> NodeWeights | None:
    start = integer(node, "axis", -1)
    if any(not x.is_identity for x in views):
        return None
    if start >= 0:
        if rank is None or start >= rank:
            return None
        start -= rank
    if start < -(rank or _MAX_RANK):
        return None
    return NodeWeights("norm", _norm_params(views), dims=tuple(range(start, 0)))


def _norm_params(views: Views) -> tuple[Param, ...]:
    return tuple(replace(x.param, role=role) for x, role in zip(views, _NORM_ROLES, strict=False))


def _embedding(node: NodeProto, views: Views, _: int | None) -> NodeWeights | None:
    table = views[0]
    if integer(node, "axis", 0) or len(table.param.shape) != 2 or not table.is_identity:
        return None
    return NodeWeights("embedding", (replace(table.param, role="weight"),))


def _group_norm(node: NodeProto, views: Views, rank: int | None) -> NodeWeights | None:
    groups = integer(node, "num_groups", 1)
    params = _norm_params(views)
    if rank is None or groups < 1 or any(len(p.shape) != 1 for p in params):
        return None
    # Up to operator set 20 there was one scale for each group, which is not followed.
    return NodeWeights(
        "norm", params, groups=groups, dims=(1 - rank,), is_opaque=params[0].size == groups
    )


def _recurrent(_: NodeProto, views: Views, __: int | None) -> NodeWeights | None:
    """Take matrices (directions, gates x hidden, inputs) and biases (directions, gates x hidden).

    Tensors that these are cut from lack the axis of directions.
    """
    is_cut = any(len(view.shape) < 2 for view in views)
    rank = 2 - is_cut
    params = tuple(
        replace(
            x.param,
            role="weight" if len(x.shape) > rank else "bias",
            axis=(x.axes[1 - is_cut] or 0) if len(x.axes) > 1 - is_cut else 0,
        )
        for x in views
        if len(x.shape) > rank - 1
    )
    if is_cut:  # inputs of all directions, then their states: each direction's own belong together
        weights = [param for param in params if param.role == "weight"]
        half = len(weights) // 2
        pairs = zip(weights[:half], weights[half:], strict=len(weights) % 2 == 0)
        biases = [param for param in params if param.role != "weight"]
        params = (*(param for pair in pairs for param in pair), *weights[2 * half :], *biases)
    return NodeWeights("recurrent", params, is_opaque=True) if len(params) == len(views) else None


def _quantized_recurrent(_: NodeProto, views: Views, __: int | None) -> NodeWeights | None:
    """Take matrices (directions, inputs, gates x hidden), transposed against those of LSTM."""
    weights = _recurrent(_, views, __)
    if weights is None:
        return None
    params = (replace(x, axis=2) if len(x.shape) > 2 else x for x in weights.params)
    return replace(weights, params=tuple(params))


def _attention(node: NodeProto, views: Views, rank: int | None) -> NodeWeights | None:
    weights = _matmul(node, views, rank)
    return weights and replace(weights, kind="attention", is_opaque=True)


def _matmul_n_bits(_: NodeProto, views: Views, __: int | None) -> NodeWeights | None:
    """Take a matrix (outputs, inputs) quantised in blocks along its inputs, which must stay together."""
    params = _with_bias(views, 0, 2)
    return NodeWeights("linear", params, is_opaque=True) if params else None


_RULES: Mapping[str, _Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _norm_along(1),
    "InstanceNormalization": _norm_along(1),
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Gather": _embedding,
    "GroupNormalization": _group_norm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "ConvInteger": _conv,
    "MatMulInteger": _matmul,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
}
_MICROSOFT_RULES: Mapping[str, _Rule] = {
    "Attention": _attention,
    "QAttention": _attention,
    "DynamicQuantizeLSTM": _quantized_recurrent,
    "DynamicQuantizeMatMul": _matmul,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "GatherBlockQuantized": _embedding,
    "GemmFloat8": _gemm,
    "MatMulBlockQuantizedFp8Weight": _matmul_n_bits,
    "MatMulBnb4": _matmul_n_bits,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _matmul_n_bits,
    "QGemm": _gemm,
}
# Index of an input that is added to the output.
_ADDED = {"FusedConv": 3, "NhwcFusedConv": 3}
# Index of the data input, and indices of weights; all other inputs are settings.
_INPUTS: Mapping[str, tuple[int, Sequence[int]]] = {
    "Attention": (0, (1, 2)),
    "ConvInteger": (0, (1,)),
    "DynamicQuantizeMatMul": (0, (1, 4)),
    "DynamicQuantizeLSTM": (0, (1, 2, 3, 7)),
    "FusedConv": (0, (1, 2)),
    "GRU": (0, (1, 2, 3)),
    "Gather": (1, (0,)),
    "GatherBlockQuantized": (1, (0,)),
    "GemmFloat8": (0, (1, 2)),
    "LSTM": (0, (1, 2, 3, 7)),
    "MatMulInteger": (0, (1,)),
    "MatMulIntegerToFloat": (0, (1, 6)),
    "MatMulBlockQuantizedFp8Weight": (0, (1, 4)),
    "MatMulBnb4": (0, (1,)),
    "MatMulNBits": (0, (1, 5)),
    "NhwcFusedConv": (0, (1, 2)),
    "QAttention": (0, (1, 2)),
    "QGemm": (0, (3, 6)),
    "QLinearConv": (0, (3, 8)),
    "QLinearMatMul": (0, (3,)),
    "RNN": (0, (1, 2, 3)),
}
