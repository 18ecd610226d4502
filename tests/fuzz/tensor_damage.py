"""Damage to the tensors of an ONNX model: shapes, types, names, data, where they lie."""

from __future__ import annotations

from fuzz.case import NAMES, NUMBERS, Case
from fuzz.picking import any_tensor, names_in, rearranged
from onnx import ModelProto, TensorProto, helper


def dims(case: Case, found: ModelProto) -> None:
    shape, rng = any_tensor(case, found).dims, case.rng
    if rng.random() < 0.2:
        shape.extend([1] * rng.choice((1, 10, 70)))
    else:
        shape[:] = rearranged(case, shape, rng.choice(NUMBERS))


def type(case: Case, found: ModelProto) -> None:
    any_tensor(case, found).data_type = case.rng.choice((*range(28), 99, -1))


def data(case: Case, found: ModelProto) -> None:
    tensor, rng = any_tensor(case, found), case.rng
    kind, field = (
        rng.randrange(5),
        rng.choice(("float_data", "int32_data", "int64_data", "double_data")),
    )
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == 1:
        tensor.raw_data += case.any_bytes()
    elif kind == 2:
        tensor.ClearField("raw_data")
    elif kind == 3:
        getattr(tensor, field).extend([rng.choice((0, 1, -1, 127, 300))] * rng.choice((1, 9, 64)))
    else:
        tensor.string_data.extend([b"text", b"\xff"])
        tensor.ClearField("raw_data")


def name(case: Case, found: ModelProto) -> None:
    any_tensor(case, found).name = case.rng.choice((*NAMES, *names_in(found)))


def tensor_kind(case: Case, found: ModelProto) -> None:
    """Make an initializer a constant node of the same name, or name it twice."""
    graph = found.graph
    if not graph.initializer:
        return
    tensor = case.rng.choice(graph.initializer)
    graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    if case.rng.random() < 0.7:
        graph.initializer.remove(tensor)


def external(case: Case, found: ModelProto) -> None:
    tensor, rng = any_tensor(case, found), case.rng
    beside = [p.name for p in sorted(case.path.parent.iterdir()) if p.is_file()]
    tensor.data_location = rng.choice(
        (TensorProto.EXTERNAL, TensorProto.EXTERNAL, TensorProto.DEFAULT)
    )
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    if rng.random() < 0.5:
        del tensor.external_data[:]
    values = {
        "location": rng.choice((case.outside(), case.outside(), *beside)),
        "offset": str(rng.choice((0, 0, 4, *NUMBERS, "x", ""))),
        "length": str(rng.choice((*NUMBERS, 16, 64, "1e3"))),
        "checksum": "0",
        "basepath": "/etc",
    }
    for key in rng.sample(list(values), rng.randrange(1, 4)) + ["location"] * (rng.random() < 0.8):
        tensor.external_data.add(key=key, value=values[key])
