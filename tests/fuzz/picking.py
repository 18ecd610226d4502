"""Which part of an ONNX model is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from fuzz.case import Case
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

T = TypeVar("T")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def any_graph(case: Case, found: ModelProto) -> GraphProto:
    """Return the main graph or one inside it."""
    return case.rng.choice(list(_graphs(found.graph)))


def any_tensor(case: Case, found: ModelProto) -> TensorProto:
    """Return a tensor, made where there is none."""
    graph = any_graph(case, found)
    held = [a.t for n in graph.node for a in n.attribute if a.HasField("t")]
    every = [*graph.initializer, *held, *found.graph.initializer]
    if every:
        held_one: TensorProto = case.rng.choice(every)
        return held_one
    new: TensorProto = found.graph.initializer.add(name="new", data_type=1)
    return new


def any_node(case: Case, found: ModelProto) -> NodeProto:
    """Return a node, made where there is none."""
    graph = any_graph(case, found)
    if graph.node:
        chosen: NodeProto = case.rng.choice(list(graph.node))
        return chosen
    new: NodeProto = graph.node.add(op_type="Identity")
    return new


def names_in(found: ModelProto) -> list[str]:
    """Return names that the main graph knows, and some that it does not."""
    graph = found.graph
    every = [n for node in graph.node for n in (*node.input, *node.output)]
    return [*every, *(t.name for t in graph.initializer), "", "nowhere"]


def rearranged(case: Case, items: Sequence[T], fresh: T) -> list[T]:
    """Return the items with one more, one exchanged, one fewer or in another order."""
    kind, found = case.rng.randrange(4), list(items)
    if kind == 0 or not found:
        return [*found, fresh]
    if kind == 1:
        found[case.rng.randrange(len(found))] = fresh
    elif kind == 2:
        found.pop()
    else:
        case.rng.shuffle(found)
    return found
