"""Weights of recurrent operators that the graph puts together: gates cut out, and joined in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from sane_onnx.model_file.proto import STANDARD
from sane_onnx.operators.value_inputs import keeps_values
from sane_plugins.weights import Param

RECURRENT = ("GRU", "LSTM", "RNN")
_WEIGHT_INPUTS = (1, 2, 3)
_PASSING = ("Cast", "Identity", "Transpose")
_MOST_VALUES = 200  # between an operator and the stored tensors


def trace_parts(
    nodes: Sequence[NodeProto], params: Mapping[str, Param]
) -> dict[str, tuple[Param, ...]]:
    """Return for each value on the way to a recurrent operator the stored weights that it is cut from."""
    producers = {name: node for node in nodes for name in node.output if name}
    parts: dict[str, tuple[Param, ...]] = {}
    for node in nodes:
        if node.op_type in RECURRENT and node.domain in STANDARD:
            for name in (node.input[i] for i in _WEIGHT_INPUTS if i < len(node.input)):
                if name and name not in params:
                    parts |= _parts_of(name, producers, params)
    return parts


def _parts_of(
    name: str, producers: Mapping[str, NodeProto], params: Mapping[str, Param]
) -> dict[str, tuple[Param, ...]]:
    """Return the parts of one operand and of what it is made of; none where anything else goes into it."""
    order: list[str] = []
    pending = [name]
    while pending:
        value = pending.pop()
        if value in params or value in order:
            continue
        node = producers.get(value)
        if node is None or len(order) >= _MOST_VALUES:
            return {}
        moved = [x for i, x in enumerate(node.input) if keeps_values(node, i)]
        if not moved and node.op_type in _PASSING and node.domain in STANDARD:
            moved = [*node.input[:1]]
        if not moved:
            return {}
        order.append(value)
        pending += moved[::-1]
    parts: dict[str, tuple[Param, ...]] = {}
    roots: dict[str, Param] = {}
    for value in order:
        inputs = producers[value].input
        roots.update({x: params[x] for x in inputs if x in params})
    for value in order:
        parts[value] = tuple(roots.values())
    return parts
