"""Topological order of a graph's nodes (depth-first search)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import NodeProto


def sort_topologically(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes sorted so that each follows the producers of its inputs; ties keep the file's order.

    In a cycle some node comes before its inputs, and is refused when it is read as a layer.
    """
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}

    def producers_of(index: int) -> Iterator[int]:
        names = nodes[index].input
        return iter(sorted({producers[name] for name in names if name in producers}))

    visited: set[int] = set()
    order: list[int] = []
    for start in range(len(nodes)):
        if start in visited:
            continue
        visited.add(start)
        stack = [(start, producers_of(start))]
        while stack:
            index, missing = stack[-1]
            first = next((x for x in missing if x not in visited), None)
            if first is None:
                order.append(index)
                stack.pop()
            else:
                visited.add(first)
                stack.append((first, producers_of(first)))
    return [nodes[i] for i in order]
