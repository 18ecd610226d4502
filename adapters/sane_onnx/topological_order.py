"""Nodes in the order in which they can run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import NodeProto


def ordered(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes after all that they read, otherwise in the file's order.

    Nodes that wait for each other come last; whoever reads them finds that their inputs are missing.
    """
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    done: dict[int, None] = {}
    for start in range(len(nodes)):
        open_, waiting = [start], {start}
        while open_:
            needed = _first_missing(nodes[open_[-1]].input, producers, done, waiting)
            if needed is None:
                done.setdefault(open_.pop())
            else:
                open_.append(needed)
                waiting.add(needed)
    return [nodes[i] for i in done]


def _first_missing(
    names: Iterable[str], producers: dict[str, int], done: dict[int, None], waiting: set[int]
) -> int | None:
    """Return the first node that gives one of these values and has no place yet."""
    places = {producers[name] for name in names if name in producers}
    return min((x for x in places if x not in done and x not in waiting), default=None)
