"""Damage to an ONNX model that stays well-formed protobuf: tensors, nodes, graphs in graphs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz import node_damage, tensor_damage
from fuzz.case import NAMES, NUMBERS, Case, Mutation
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto

_Change = Callable[[Case, ModelProto], None]


def tensors(case: Case) -> None:
    """Change shapes, types, names and data of tensors."""
    _changed(
        case,
        (
            tensor_damage.dims,
            tensor_damage.dims,
            tensor_damage.type,
            tensor_damage.data,
            tensor_damage.name,
            tensor_damage.tensor_kind,
        ),
    )


def external(case: Case) -> None:
    """Move values to other files: outside, missing, beyond their ends."""
    _changed(case, (tensor_damage.external,))


def nodes(case: Case) -> None:
    """Change operators, attributes and who reads what."""
    _changed(
        case,
        (
            node_damage.operator,
            node_damage.attribute,
            node_damage.attribute,
            node_damage.wiring,
            node_damage.wiring,
            node_damage.order,
        ),
    )


def graphs(case: Case) -> None:
    """Nest graphs, make functions that call each other, and long chains."""
    _changed(
        case,
        (
            node_damage.nest,
            node_damage.function,
            node_damage.chain,
            node_damage.constant,
            node_damage.sparse,
        ),
    )


def model(case: Case) -> None:
    """Change versions, domains, inputs and told shapes, mixed with all the rest."""
    _changed(
        case,
        (
            _versions,
            _told,
            tensor_damage.dims,
            node_damage.attribute,
            node_damage.wiring,
            node_damage.constant,
            tensor_damage.external,
            node_damage.quantize,
        ),
    )


def _changed(case: Case, changes: tuple[_Change, ...]) -> None:
    found = ModelProto()
    try:
        found.ParseFromString(case.path.read_bytes())
        for _ in range(case.rng.choice((1, 1, 2, 4))):
            case.rng.choice(changes)(case, found)
        case.path.write_bytes(found.SerializeToString())
    except (DecodeError, EncodeError, UnicodeEncodeError):
        case.path.write_bytes(case.any_bytes())


def _versions(case: Case, found: ModelProto) -> None:
    rng: Random = case.rng
    found.ir_version = rng.choice((1, 3, 8, 99, *NUMBERS))
    if rng.random() < 0.5 and found.opset_import:
        found.opset_import[0].version = rng.choice((1, 6, 7, 13, 30, *NUMBERS))
    if rng.random() < 0.2:
        del found.opset_import[:]
    if rng.random() < 0.2:
        found.opset_import.add(domain=rng.choice(NAMES[:5]), version=1)


def _told(case: Case, found: ModelProto) -> None:
    rng, graph = case.rng, found.graph
    every = [*graph.input, *graph.output, *graph.value_info]
    if rng.random() < 0.3 and graph.initializer:
        graph.input.add(name=rng.choice(graph.initializer).name)
    elif every:
        told = rng.choice(every)
        told.name = rng.choice((told.name, told.name, "x", ""))
        shape = told.type.tensor_type.shape
        shape.dim.add(dim_value=rng.choice(NUMBERS))
        shape.dim[rng.randrange(len(shape.dim))].dim_value = rng.choice(NUMBERS)
        told.type.tensor_type.elem_type = rng.choice((0, 1, 7, 99))


MUTATIONS: dict[str, Mutation] = {
    "tensors": tensors,
    "external data": external,
    "nodes": nodes,
    "graphs": graphs,
    "model": model,
}
