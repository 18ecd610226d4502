"""Typed access to the attributes of a node."""

from __future__ import annotations

from onnx import AttributeProto, NodeProto


def integer(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute. Raises `ValueError` where it has another type."""
    attribute = _find(node, name, AttributeProto.INT)
    return default if attribute is None else attribute.i


def integers(node: NodeProto, name: str) -> list[int] | None:
    """Return an attribute that lists integers, if any. Raises `ValueError` for another type."""
    attribute = _find(node, name, AttributeProto.INTS)
    return None if attribute is None else list(attribute.ints)


def text(node: NodeProto, name: str, default: str) -> str:
    """Return a text attribute. Raises `ValueError` where it has another type."""
    attribute = _find(node, name, AttributeProto.STRING)
    return default if attribute is None else attribute.s.decode(errors="replace")


def has(node: NodeProto, name: str) -> bool:
    """Return whether a node has this attribute."""
    return any(a.name == name for a in node.attribute)


def _find(node: NodeProto, name: str, kind: int) -> AttributeProto | None:
    attribute = next((a for a in node.attribute if a.name == name), None)
    if attribute is not None and attribute.type != kind:
        raise ValueError(f"attribute {name} of {node.op_type} has another type")
    return attribute
