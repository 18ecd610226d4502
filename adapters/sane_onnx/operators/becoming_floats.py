"""Which integers may end in floating point, by whatever way: one pass against the order of the nodes."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.operators.attributes import integer
from sane_onnx.operators.quantized_operators import quantized_input
from sane_onnx.operators.value_inputs import carries_values
from sane_onnx.tensors import FLOATS

# Domains whose operators take indices and sizes as 32 and 64 bits, and weights in fewer.
_KNOWN = (MICROSOFT, "ai.onnx.ml")
_UNKNOWN_TYPE = ("CastLike", "Loop", "Scan")


def find_floats(nodes: Sequence[NodeProto], is_wide: bool) -> set[str]:
    """Return the values of integers of which an operator, later or at once, makes floating-point numbers.

    `is_wide`: of integers of 32 or 64 bits, which operators of known domains take for indices.
    """
    floats: set[str] = set()
    for node in reversed(nodes):
        is_float = makes_floats(node, is_wide) or not floats.isdisjoint(filter(None, node.output))
        floats.update(
            name
            for index, name in enumerate(node.input)
            if (is_float and carries_values(node, index)) or quantized_input(node, index, True)
        )
    return floats


def makes_floats(node: NodeProto, is_wide: bool) -> bool:
    """Return whether a node makes floating-point numbers of integers, or may do so."""
    if node.domain not in STANDARD:
        return node.domain not in _KNOWN or not is_wide
    if node.op_type == "Cast":
        return integer(node, "to", 0) in FLOATS
    return node.op_type in _UNKNOWN_TYPE and not is_wide
