"""Short lists of integers that exporters compute in the graph: sizes, axes, and what is made of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from onnx import ModelProto, NodeProto

from sane_onnx.constants import Constant, ConstantOfShape
from sane_onnx.model_file.inline import InlinedModel
from sane_onnx.model_file.proto import STANDARD
from sane_onnx.model_file.shapes import Shape, infer_shapes
from sane_onnx.operators import attributes
from sane_onnx.tensors import StoredTensor

_LONGEST = 64  # lists of axes and sizes are shorter
_INTEGERS = (torch.int32, torch.int64)
_BOUND = 2**62
_MOST_ROUNDS = 3


@dataclass(frozen=True)
class _Numbers:
    """A list of integers, or a single one; None stands for one that is not known.

    Those of a condition are 0 and 1.
    """

    values: tuple[int | None, ...]
    is_scalar: bool = False
    is_condition: bool = False


def known_integers(
    nodes: Sequence[NodeProto], constants: Mapping[str, Constant], shapes: Mapping[str, Shape]
) -> dict[str, Sequence[int]]:
    """Return the values of every list of integers that constants and known shapes decide."""
    found: dict[str, _Numbers] = {}
    for name, constant in constants.items():
        if isinstance(constant, StoredTensor | ConstantOfShape) and _is_short(constant):
            values = tuple(int(x) for x in constant.read().reshape(-1).tolist())
            found[name] = _Numbers(values, not constant.shape)
    for node in nodes:
        rule = _RULES.get(node.op_type) if node.domain in STANDARD else None
        if rule is None or len(node.output) != 1 or not node.input:
            continue
        operands = [found.get(name) for name in node.input]
        shape = shapes.get(node.input[0])
        value = _shape(node, shape) if node.op_type == "Shape" else rule(node, operands)
        if value is not None and len(value.values) < _LONGEST:
            found[node.output[0]] = value
    return {
        name: [x for x in numbers.values if x is not None]
        for name, numbers in found.items()
        if not (numbers.is_scalar or numbers.is_condition or None in numbers.values)
    }


def infer_values(
    model: ModelProto,
    inlined: InlinedModel,
    nodes: Sequence[NodeProto],
    most_rounds: int = _MOST_ROUNDS,
) -> tuple[dict[str, Shape], dict[str, Sequence[int]]]:
    """Return the shapes of values, and the integers that they decide, which decide more shapes in turn."""
    shapes = infer_shapes(model, inlined, nodes)
    integers = known_integers(nodes, inlined.constants, shapes)
    for _ in range(most_rounds):
        computed = {name: x for name, x in integers.items() if name not in inlined.constants}
        if not any(name in computed for node in nodes for name in node.input[1:]):
            break
        before = len(integers)
        shapes = infer_shapes(model, inlined, nodes, computed)
        integers = known_integers(nodes, inlined.constants, shapes)
        if len(integers) == before:
            break
    return shapes, integers


def _is_short(constant: Constant) -> bool:
    is_list = len(constant.shape) < 2 and prod(constant.shape) < _LONGEST
    return is_list and constant.dtype in _INTEGERS


_Operands = list[_Numbers | None]


def _shape(node: NodeProto, shape: Shape | None) -> _Numbers | None:
    start, end = (attributes.integer(node, name, i) for name, i in (("start", 0), ("end", _BOUND)))
    return None if shape is None else _Numbers(tuple(shape[start:end]))


def _same(_: NodeProto, operands: _Operands) -> _Numbers | None:
    return operands[0]


def _as_list(node: NodeProto, operands: _Operands) -> _Numbers | None:
    """Follow Unsqueeze of a number, and Reshape of a list to a list."""
    numbers = operands[0]
    if numbers is None:
        return None
    target = operands[1] if node.op_type == "Reshape" and len(operands) > 1 else None
    is_list = target is not None and len(target.values) == 1
    is_plain = numbers.is_scalar if node.op_type == "Unsqueeze" else is_list
    return _Numbers(numbers.values) if is_plain else None


def _as_scalar(_: NodeProto, operands: _Operands) -> _Numbers | None:
    numbers = operands[0]
    is_single = numbers is not None and len(numbers.values) == 1
    return _Numbers(numbers.values, is_scalar=True) if numbers is not None and is_single else None


def _gather(_: NodeProto, operands: _Operands) -> _Numbers | None:
    numbers, indices = operands[0], operands[1] if len(operands) > 1 else None
    if numbers is None or indices is None:
        return None
    places = [i for i in indices.values if i is not None]
    count = len(numbers.values)
    if len(places) < len(indices.values) or any(not -count <= i < count for i in places):
        return None
    return _Numbers(tuple(numbers.values[i] for i in places), indices.is_scalar)


def _slice(_: NodeProto, operands: _Operands) -> _Numbers | None:
    numbers, bounds = operands[0], operands[1:]
    singles = [x.values[0] for x in bounds if x is not None and len(x.values) == 1]
    stated = [x for x in singles if x is not None]
    is_known = len(stated) == len(bounds) >= 2 and (len(stated) < 3 or stated[2] in (0, -1))
    step = stated[3] if len(stated) > 3 else 1
    if numbers is None or numbers.is_scalar or not is_known or step < 1:
        return None
    return _Numbers(numbers.values[stated[0] : stated[1] : step])


def _concat(_: NodeProto, operands: _Operands) -> _Numbers | None:
    known = [x for x in operands if x is not None and not x.is_scalar]
    if len(known) < len(operands):
        return None
    return _Numbers(tuple(value for x in known for value in x.values))


def _product(node: NodeProto, operands: _Operands) -> _Numbers | None:
    """Follow ReduceProd of a list."""
    numbers = operands[0]
    if numbers is None or numbers.is_scalar or None in numbers.values:
        return None
    total = prod(x for x in numbers.values if x is not None)
    is_scalar = not attributes.integer(node, "keepdims", 1)
    return _Numbers((total,), is_scalar) if abs(total) <= _BOUND else None


def _range(_: NodeProto, operands: _Operands) -> _Numbers | None:
    bounds = [x.values[0] for x in operands if x is not None and len(x.values) == 1]
    stated = [x for x in bounds if x is not None]
    if len(stated) != 3 or not stated[2]:
        return None
    values = range(*stated)
    return _Numbers(tuple(values)) if len(values) < _LONGEST else None


def _quotient(a: int, b: int) -> int | None:
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int | None:
    """Return the remainder where all languages agree on it."""
    return a % b if a >= 0 and b > 0 else None


def _elementwise(function: Callable[[int, int], int | None]) -> _Rule:
    def rule(_: NodeProto, operands: _Operands) -> _Numbers | None:
        known = [x for x in operands if x is not None]
        if len(operands) != 2 or len(known) < 2:
            return None
        length = max(len(x.values) for x in known)
        if any(len(x.values) not in (1, length) for x in known):
            return None
        rows = [x.values * (length if len(x.values) == 1 else 1) for x in known]
        values = [
            None if a is None or b is None else function(a, b) for a, b in zip(*rows, strict=True)
        ]
        if any(x is not None and abs(x) > _BOUND for x in values):
            return None
        return _Numbers(tuple(values), all(x.is_scalar for x in known))

    return rule


def _equal(node: NodeProto, operands: _Operands) -> _Numbers | None:
    numbers = _elementwise(lambda a, b: int(a == b))(node, operands)
    return numbers and replace(numbers, is_condition=True)


def _where(_: NodeProto, operands: _Operands) -> _Numbers | None:
    """Follow a choice by a condition, with which exporters say which sizes of an Expand are its input's."""
    condition = operands[0]
    if condition is None or None in condition.values or len(operands) != 3:
        return None
    known = [x for x in operands[1:] if x is not None]
    length = max((len(x.values) for x in (condition, *known)), default=0)
    if len(known) < 2 or any(len(x.values) not in (1, length) for x in (condition, *known)):
        return None
    rows = [x.values * (length if len(x.values) == 1 else 1) for x in (condition, *known)]
    values = tuple(a if chosen else b for chosen, a, b in zip(*rows, strict=True))
    return _Numbers(values, all(x.is_scalar for x in (condition, *known)))


_Rule = Callable[[NodeProto, _Operands], _Numbers | None]
_RULES: Mapping[str, _Rule] = {
    "Add": _elementwise(operator.add),
    "Cast": _same,
    "Concat": _concat,
    "Div": _elementwise(_quotient),
    "Equal": _equal,
    "Gather": _gather,
    "Identity": _same,
    "Max": _elementwise(max),
    "Min": _elementwise(min),
    "Mod": _elementwise(_remainder),
    "Mul": _elementwise(operator.mul),
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _as_list,
    "Shape": _same,
    "Slice": _slice,
    "Squeeze": _as_scalar,
    "Sub": _elementwise(operator.sub),
    "Unsqueeze": _as_list,
    "Where": _where,
}
