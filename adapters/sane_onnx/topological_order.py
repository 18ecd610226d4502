"""Topological order of a graph's nodes (depth-first search)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import NodeProto


def sort_topologically(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes sorted so that each follows the producers of its inputs; ties keep the file's order.

    In a cycle some node comes before its inputs, and is refused when it is read as a layer.
    """
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    for start in range(len(nodes)):
        stack, visited = [start], {start}
        while stack:
            missing = _first_missing(nodes[stack[-1]].input, producers, order, visited)
            if missing is None:
                order.setdefault(stack.pop())
            else:
                stack.append(missing)
                visited.add(missing)
    return [nodes[i] for i in order]


def _first_missing(
    names: Iterable[str], producers: dict[str, int], order: dict[int, None], visited: set[int]
) -> int | None:
    """Return the first producer of these values that was not visited yet."""
    indices = {producers[name] for name in names if name in producers}
    return min((x for x in indices if x not in order and x not in visited), default=None)
