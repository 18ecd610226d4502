"""Which of a node's inputs are its weights, and which of their axes holds the output channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from sane_onnx.attributes import integer
from sane_onnx.model import STANDARD
from sane_onnx.shapes import Shape
from sane_plugins.weights.graph import Kind, Param, Role

_MOST_AXES = 8
_NORM: tuple[Role, ...] = ("scale", "shift", "running_mean", "running_var")


@dataclass(frozen=True)
class Constant:
    """A weight as a node reads it: itself, or a matrix transposed on the way."""

    param: Param
    is_transposed: bool = False


@dataclass(frozen=True)
class Weights:
    """What makes a node a layer with weights; `data` is the value that it works on."""

    kind: Kind
    params: tuple[Param, ...]
    data: str = ""
    groups: int = 1
    dims: tuple[int, ...] = ()


Given = Sequence[Constant]
_Rule = Callable[[NodeProto, Given, int | None], Weights | None]


def weights_of(
    node: NodeProto, constants: Mapping[str, Constant], shapes: Mapping[str, Shape]
) -> Weights | None:
    """Return a node's weights; None where it takes none, or not all of them are constants.

    Input 0 is the data and the others are weights, save that Gather looks up data in its weight.
    """
    rule = _RULES.get(node.op_type) if node.domain in STANDARD else None
    if rule is None or len(node.input) < 2:
        return None
    data, *others = node.input
    if node.op_type == "Gather":
        data, others = others[0], [data]
    given = [constants[name] for name in others if name in constants]
    if data in constants or len(given) < sum(map(bool, others)):
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
    return Weights(kind, params, groups=groups)


def _gemm(node: NodeProto, given: Given, _: int | None) -> Weights | None:
    if integer(node, "transA", 0):
        return None
    params = _with_bias(given, int(not integer(node, "transB", 0)), 2)
    return Weights("linear", params) if params else None


def _matmul(_: NodeProto, given: Given, __: int | None) -> Weights | None:
    params = _with_bias(given, 1, 2)
    return Weights("linear", params) if params else None


def _with_bias(given: Given, axis: int, rank: int) -> tuple[Param, ...] | None:
    """Return weight and bias with the weight's output axis; None where they are no such pair."""
    weight = given[0].param
    is_matrix = len(weight.shape) >= rank and (rank > 2 or len(weight.shape) == rank)
    if not is_matrix or any(len(x.param.shape) != 1 for x in given[1:]):
        return None
    flipped = given[0].is_transposed
    weight = replace(weight, role="weight", axis=axis ^ flipped)
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
    if integer(node, "axis", 0) or len(table.param.shape) != 2 or table.is_transposed:
        return None
    return Weights("embedding", (replace(table.param, role="weight"),))


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
}
