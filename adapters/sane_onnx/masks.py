"""Masks: constants of infinities, or of the largest numbers, that are added to scores or chosen from."""

from __future__ import annotations

import torch

from sane_onnx.constants import Constant, ConstantOfShape
from sane_onnx.quantization.final_readers import Readers, final_readers
from sane_onnx.tensors import FLOATS
from sane_plugins.weights import MAX_VALUE

ELEMENTWISE = (
    "Pow",
    "Sqrt",
    "Add",
    "And",
    "Div",
    "Max",
    "Min",
    "Mul",
    "Softmax",
    "Sub",
    "Sum",
    "Where",
)


def is_mask(constant: Constant, key: str, readers: Readers) -> bool:
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


def _is_elementwise_operand(key: str, readers: Readers) -> bool:
    """Return whether only elementwise operators compute with a value."""
    final = final_readers(key, readers)
    return bool(final) and all(node.op_type in ELEMENTWISE for node, _ in final)
