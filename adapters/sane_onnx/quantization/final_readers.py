"""Which nodes read a value in the end, behind those that only move or cast it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from sane_onnx.operators.value_inputs import keeps_values

Readers = Mapping[str, Sequence[tuple[NodeProto, int]]]
_PASSING = ("Cast", "CastLike", "Identity", "ScatterElements", "ScatterND", "Transpose")
_MOST_VALUES = 1000


def final_readers(key: str, readers: Readers) -> list[tuple[NodeProto, int]]:
    """Return the nodes that compute with a value, with the index of their input."""
    final: list[tuple[NodeProto, int]] = []
    pending, seen = [key], {key}
    while pending:
        for node, index in readers.get(pending.pop(), ()):
            is_moved = keeps_values(node, index) and node.op_type not in ("Gather", "Where")
            if (is_moved or (node.op_type in _PASSING and not index)) and len(seen) < _MOST_VALUES:
                pending += [x for x in node.output if x and x not in seen]
                seen.update(node.output)
            else:
                final.append((node, index))
    return final
