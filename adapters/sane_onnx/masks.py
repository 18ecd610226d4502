"""Masks: constants of infinities, or of the largest numbers, that are added to scores or chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant, ConstantOfShape
from sane_onnx.operators.value_inputs import keeps_values
from sane_onnx.tensors import FLOATS
from sane_plugins.weights import MAX_VALUE

_ELEMENTWISE = ("Add", "And", "Div", "Max", "Min", "Mul", "Softmax", "Sub", "Sum", "Where")
_PASSING = (
    "Cast",
    "CastLike",
    "Identity",
    "ScatterElements",
    "ScatterND",
    "Transpose",
    "Unsqueeze",
)
_MOST_READERS = 1000
_Readers = Mapping[str, Sequence[tuple[NodeProto, int]]]


def is_mask(constant: Constant, key: str, readers: _Readers) -> bool:
    """Return whether a constant holds numbers too large for weights, as masks do, and is used as one."""
    if constant.dtype not in FLOATS.values() or not _is_elementwise_operand(key, readers):
        return False
    constant.require()
    numbers = constant.read()
    if isinstance(constant, ConstantOfShape):
        numbers = numbers[(0,) * numbers.ndim].reshape(1)
    size = numbers.abs()
    is_huge = size > min(MAX_VALUE, torch.finfo(numbers.dtype).max)
    if numbers.isnan().any() or not is_huge.any():
        return False
    # A bias that diverged is a vector of many numbers.
    is_table = sum(n > 1 for n in constant.shape) != 1
    return is_table or bool((is_huge | (size == 0) | (size == 1)).all())


def _is_elementwise_operand(key: str, readers: _Readers) -> bool:
    """Return whether only elementwise operators read a value, after it was moved or cast."""
    pending, seen = [key], {key}
    while pending:
        for node, index in readers.get(pending.pop(), ()):
            if node.op_type in _PASSING or (keeps_values(node, index) and node.op_type != "Where"):
                pending += [x for x in node.output if x and x not in seen]
                seen.update(node.output)
            elif node.op_type not in _ELEMENTWISE or len(seen) > _MOST_READERS:
                return False
    return bool(readers.get(key))
