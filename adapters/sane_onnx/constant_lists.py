"""Values that a model computes from constants alone: short integer lists, and numbers repeated.

Exporters that fold nothing write an axis as a constant that is reshaped, a shape as constants that are
concatenated, and a bias of zeros as a number that is expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from onnx import NodeProto, TensorProto

from sane_onnx.constants import Constant
from sane_onnx.operators.attributes import integer
from sane_onnx.proto import STANDARD

_KEEP_NUMBERS = ("Identity", "Reshape", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Expand")


def fold_lists(
    nodes: Iterable[NodeProto], lists: Mapping[str, list[int]], most: int
) -> dict[str, list[int]]:
    """Return integer lists by value, those computed from others too, of at most `most` numbers."""
    found = dict(lists)
    for node in nodes:
        if node.domain not in STANDARD or not node.output or not node.input:
            continue
        if node.input[0] in found and _keeps_list(node, found):
            found[node.output[0]] = found[node.input[0]]
        elif node.op_type == "Concat" and integer(node, "axis", 0) == 0:
            parts: Sequence[list[int]] = [found[x] for x in node.input if x in found]
            if len(parts) == len(node.input) and sum(map(len, parts)) <= most:
                found[node.output[0]] = [x for part in parts for x in part]
    return found


def _keeps_list(node: NodeProto, lists: Mapping[str, list[int]]) -> bool:
    """Return whether a node gives its first input, a list, as a list of the same integers."""
    if node.op_type == "Reshape" and len(node.input) > 1:
        return len(lists.get(node.input[1], ())) == 1
    if node.op_type == "Cast":
        return integer(node, "to", 0) == TensorProto.INT64
    return node.op_type == "Identity"


def repeated_numbers(
    nodes: Iterable[NodeProto], constants: Mapping[str, Constant], params: Mapping[str, object]
) -> set[str]:
    """Return values that are one number, in any shape: no channel of them differs from another."""
    numbers = {name for name, x in constants.items() if prod(x.shape) == 1 and name not in params}
    computed: set[str] = set()
    for node in nodes:
        is_kept = node.domain in STANDARD and node.op_type in _KEEP_NUMBERS
        if is_kept and len(node.output) == 1 and numbers.intersection(node.input[:1]):
            numbers.add(node.output[0])
            computed.add(node.output[0])
    return computed
