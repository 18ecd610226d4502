"""A node's attributes, read as the type that they must have."""

from __future__ import annotations

from onnx import AttributeProto, NodeProto


def integer(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute. Raises `ValueError` where it has another type."""
    found = _find(node, name, AttributeProto.INT)
    return default if found is None else found.i


def integers(node: NodeProto, name: str) -> list[int] | None:
    """Return an attribute that lists integers, if any. Raises `ValueError` for another type."""
    found = _find(node, name, AttributeProto.INTS)
    return None if found is None else list(found.ints)


def has(node: NodeProto, name: str) -> bool:
    """Tell whether a node has this attribute."""
    return any(a.name == name for a in node.attribute)


def _find(node: NodeProto, name: str, kind: int) -> AttributeProto | None:
    found = next((a for a in node.attribute if a.name == name), None)
    if found is not None and found.type != kind:
        raise ValueError(f"attribute {name} of {node.op_type} has another type")
    return found
