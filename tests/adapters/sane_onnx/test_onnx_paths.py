"""Quantised weights behind other nodes: the values read are those that onnxruntime computes with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from onnxfiles import assert_returns, opened, run, saved

from sane_plugins.errors import SourceError
from sane_plugins.weights import WeightGraph

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
node = helper.make_node
MICROSOFT = "com.microsoft"
ROWS, COLUMNS = 12, 8
SCALES = np.linspace(0.05, 0.4, COLUMNS, dtype=np.float32)
ROW_SCALES = np.linspace(0.05, 0.4, ROWS, dtype=np.float32)


def _integers(
    dtype: str = "int8", shape: tuple[int, ...] = (ROWS, COLUMNS), seed: int = 0
) -> np.ndarray:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(max(info.min, -100), min(info.max, 100), shape).astype(dtype)


def _number(value: float, dtype: str = "float32") -> np.ndarray:
    return np.array(value, dtype)


def _model(
    path: Path, nodes: Sequence, tensors: dict, inputs: dict[str, tuple], **options: object
) -> Path:
    """Write a model with output y; inputs are FLOAT, but INT64 where their name begins with i."""
    stored = [
        x if isinstance(x, onnx.TensorProto) else numpy_helper.from_array(x, name)
        for name, x in tensors.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name.startswith("i") else TensorProto.FLOAT, shape
            )
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    imports += [helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, **options), path)
    return path


class Case(NamedTuple):
    """Nodes that make a matrix w of shape (ROWS, COLUMNS) from tensors, or that look its rows up by i."""

    nodes: list
    tensors: dict
    keys: tuple[str, ...] = ("q",)
    is_looked_up: bool = False


I64 = np.int64
AXIS_ONE = {"q": _integers(), "s": SCALES}
PLAIN = {"q": _integers(), "s": _number(0.02), "z": _number(3, "int8")}
CASES = {
    # A table, looked up as integers and dequantised afterwards.
    "gather": Case(
        [node("Gather", ["q", "i"], ["g"]), node("DequantizeLinear", ["g", "s", "z"], ["w"])],
        PLAIN,
        is_looked_up=True,
    ),
    "gather per column": Case(
        [node("Gather", ["q", "i"], ["g"]), node("DequantizeLinear", ["g", "s"], ["w"], axis=1)],
        AXIS_ONE,
        is_looked_up=True,
    ),
    "gather, cast": Case(
        [
            node("Gather", ["q", "i"], ["g"]),
            node("Cast", ["g"], ["c"], to=TensorProto.FLOAT),
            node("Sub", ["c", "z"], ["d"]),
            node("Mul", ["d", "s"], ["w"]),
        ],
        {"q": _integers("uint8"), "z": _number(7), "s": SCALES},
        is_looked_up=True,
    ),
    "cast, gather": Case(
        [
            node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
            node("Gather", ["c", "i"], ["g"]),
            node("Mul", ["s", "g"], ["w"]),
        ],
        {"q": _integers("int16"), "s": _number(0.1)},
        is_looked_up=True,
    ),
    "gather of computed rows": Case(
        [
            node("Add", ["i", "one"], ["j"]),
            node("Sub", ["j", "one"], ["k"]),
            node("Gather", ["q", "k"], ["g"]),
            node("DequantizeLinear", ["g", "s", "z"], ["w"]),
        ],
        {**PLAIN, "one": _number(1, "int64")},
        is_looked_up=True,
    ),
    "block gather": Case(
        [
            node(
                "GatherBlockQuantized",
                ["q", "i", "s", "z"],
                ["w"],
                domain=MICROSOFT,
                block_size=16,
                bits=8,
            )
        ],
        {
            "q": _integers("uint8", (ROWS, 48)),
            "s": np.linspace(0.1, 1, ROWS * 3, dtype=np.float32).reshape(ROWS, 3),
            "z": _integers("uint8", (ROWS, 3), 1),
        },
        is_looked_up=True,
    ),
    "block gather of packed bits": Case(
        [node("GatherBlockQuantized", ["q", "i", "s"], ["w"], domain=MICROSOFT, block_size=16)],
        {
            "q": _integers("uint8", (ROWS, 24)),
            "s": np.linspace(0.1, 1, ROWS * 3, dtype=np.float32).reshape(ROWS, 3),
        },
        is_looked_up=True,
    ),
    # A matrix, moved as integers.
    "transpose": Case(
        [node("Transpose", ["q"], ["t"]), node("DequantizeLinear", ["t", "s"], ["w"], axis=1)],
        {"q": _integers(shape=(COLUMNS, ROWS)), "s": SCALES},
    ),
    "flat": Case(
        [node("Reshape", ["q", "to"], ["t"]), node("DequantizeLinear", ["t", "s", "z"], ["w"])],
        {**PLAIN, "q": _integers().reshape(-1), "to": np.array([ROWS, -1], I64)},
    ),
    "flat, per row": Case(
        [node("Reshape", ["q", "to"], ["t"]), node("DequantizeLinear", ["t", "s"], ["w"], axis=0)],
        {"q": _integers().reshape(-1), "s": ROW_SCALES, "to": np.array([0 - 1, COLUMNS], I64)},
    ),
    "identities": Case(
        [
            node("Unsqueeze", ["q", "one"], ["a"]),
            node("Identity", ["a"], ["b"]),
            node("Squeeze", ["b", "one"], ["c"]),
            node("Flatten", ["c"], ["d"]),
            node("DequantizeLinear", ["d", "s"], ["w"], axis=-1),
        ],
        {**AXIS_ONE, "one": np.array([1], I64)},
    ),
    "halves": Case(
        [
            node("Slice", ["q", "a", "b"], ["front"]),
            node("Slice", ["q", "b", "end"], ["back"]),
            node("DequantizeLinear", ["front", "s"], ["f"]),
            node("DequantizeLinear", ["back", "t"], ["k"]),
            node("Concat", ["f", "k"], ["w"], axis=0),
        ],
        {
            "q": _integers(),
            "s": _number(0.1),
            "t": _number(0.3),
            "a": np.array([0], I64),
            "b": np.array([5], I64),
            "end": np.array([2**62], I64),
        },
    ),
    "split": Case(
        [
            node("Split", ["q"], ["a", "b"], axis=1, num_outputs=2),
            node("DequantizeLinear", ["a", "s", "z"], ["f"], axis=0),
            node("DequantizeLinear", ["b", "t"], ["k"]),
            node("Concat", ["f", "k"], ["w"], axis=1),
        ],
        {
            "q": _integers(),
            "s": ROW_SCALES,
            "z": _integers(shape=(ROWS,), seed=2),
            "t": _number(0.3),
        },
    ),
    "concat": Case(
        [
            node("Concat", ["q", "p"], ["c"], axis=1),
            node("DequantizeLinear", ["c", "s"], ["w"], axis=1),
        ],
        {"q": _integers(shape=(ROWS, 3)), "p": _integers(shape=(ROWS, 5), seed=1), "s": SCALES},
        keys=("q", "p"),
    ),
    "rows in another order": Case(
        [node("Gather", ["q", "r"], ["g"]), node("DequantizeLinear", ["g", "s"], ["w"], axis=0)],
        {"q": _integers(), "s": ROW_SCALES, "r": np.random.default_rng(0).permutation(ROWS)},
    ),
    # Dequantised by arithmetic.
    "cast, sub, mul": Case(
        [
            node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
            node("Sub", ["c", "z"], ["d"]),
            node("Mul", ["d", "s"], ["w"]),
        ],
        {"q": _integers("uint8"), "z": _number(40), "s": SCALES},
    ),
    "whole numbers first": Case(
        [
            node("Cast", ["q"], ["c"], to=TensorProto.INT32),
            node("Sub", ["c", "z"], ["d"]),
            node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
            node("Div", ["e", "s"], ["w"]),
        ],
        {"q": _integers("uint8"), "z": _integers("int32", (ROWS, 1)), "s": 1 / SCALES},
    ),
    "add, mul": Case(
        [
            node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
            node("Add", ["c", "z"], ["d"]),
            node("Mul", ["d", "s"], ["w"]),
        ],
        {"q": _integers("int64"), "z": _number(-5), "s": ROW_SCALES[:, None]},
    ),
    "blocks by reshape": Case(
        [
            node("Reshape", ["q", "blocks"], ["r"]),
            node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
            node("Sub", ["c", "z"], ["d"]),
            node("Mul", ["d", "s"], ["e"]),
            node("Reshape", ["e", "whole"], ["w"]),
        ],
        {
            "q": _integers("uint8"),
            "z": _integers("uint8", (ROWS, 2, 1), 1).astype("float32"),
            "s": np.linspace(0.1, 1, ROWS * 2, dtype=np.float32).reshape(ROWS, 2, 1),
            "blocks": np.array([ROWS, 2, 4], I64),
            "whole": np.array([ROWS, COLUMNS], I64),
        },
    ),
    "only cast": Case([node("Cast", ["q"], ["w"], to=TensorProto.FLOAT)], {"q": _integers()}),
    # Scales that are computed themselves.
    "scales of scales": Case(
        [
            node("DequantizeLinear", ["sq", "ss"], ["s"]),
            node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        ],
        {"q": _integers(), "sq": np.arange(1, COLUMNS + 1, dtype=np.uint8), "ss": _number(0.01)},
    ),
    "scales multiplied and reshaped": Case(
        [
            node("Mul", ["a", "b"], ["c"]),
            node("Reshape", ["c", "to"], ["s"]),
            node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        ],
        {
            "q": _integers(),
            "a": ROW_SCALES[:, None],
            "b": _number(2),
            "to": np.array([-1], I64),
        },
    ),
    # Blocks, and types of other widths.
    **{
        f"blocks along {axis} of {kind}": Case(
            [node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis, block_size=4)],
            {
                "q": helper.make_tensor(
                    "q", getattr(TensorProto, kind), (ROWS, COLUMNS), np.arange(96) % 15 - low
                ),
                "s": np.linspace(0.1, 1, 24, dtype=np.float32).reshape(
                    (3, 8) if axis == 0 else (12, 2)
                ),
                "z": helper.make_tensor(
                    "z",
                    getattr(TensorProto, kind),
                    (3, 8) if axis == 0 else (12, 2),
                    np.arange(24) % 15 - low,
                ),
            },
        )
        for axis in (0, 1)
        for kind, low in (("INT4", 8), ("UINT4", 0), ("INT16", 8), ("UINT16", 0))
    },
}


def _path(case: Case, folder: Path) -> tuple[Path, np.ndarray]:
    """Write the model of a case, of which the given input makes the matrix itself the output."""
    if case.is_looked_up:
        nodes = [*case.nodes, node("Identity", ["w"], ["y"])]
        return _model(folder / "m.onnx", nodes, case.tensors, {"i": (None,)}), np.arange(ROWS)
    nodes = [*case.nodes, node("MatMul", ["x", "w"], ["y"])]
    inputs = {"x": (None, ROWS)}
    return _model(folder / "m.onnx", nodes, case.tensors, inputs), np.eye(ROWS, dtype=np.float32)


def _as_used(graph: WeightGraph, case: Case, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values read, as the matrix that they make."""
    parts = [graph.tensors[key].numpy() for key in case.keys]
    if "r" in case.tensors:
        return parts[0][case.tensors["r"]]
    values = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return values.T if values.shape == shape[::-1] != shape else values.reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_values_read_are_the_values_used(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path, question = _path(case, tmp_path)
    graph = opened(path)
    (answer,) = run(path, question)
    assert (graph.size, graph.coverage) == (answer.size, 1)
    assert {param.key for param in graph.params} == set(case.keys)
    assert np.allclose(_as_used(graph, case, answer.shape), answer, rtol=2e-6, atol=1e-6)
    assert_returns(path, tmp_path, question)


@pytest.mark.parametrize("name", CASES)
def test_values_written_are_those_asked_for(name: str, tmp_path: Path) -> None:
    """Halved weights return to half a step, whichever nodes lie between; unchanged ones are bit for bit."""
    path, question = _path(CASES[name], tmp_path)
    graph = opened(path)
    half = graph.replace({key: graph.tensors[key] / 2 for key in CASES[name].keys})
    try:
        written = saved(half, tmp_path / "half.onnx")
    except SourceError:
        # Half of an odd number has no place among whole ones, nor has half of a value far from zero.
        assert name in ("only cast", "whole numbers first")
        return
    (before,), (after,) = run(path, question), run(written, question)
    assert np.abs(after - before / 2).max() <= 0.51
    again = opened(written)
    assert all(
        torch.allclose(again.tensors[k], half.tensors[k], atol=0.51) for k in CASES[name].keys
    )
    swapped = graph.replace({key: graph.tensors[key].flip(0) for key in CASES[name].keys})
    try:
        flipped = opened(saved(swapped, tmp_path / "flipped.onnx"))
    except SourceError as error:
        assert "scales" in str(error) or "no place" in str(error)
    else:
        for key in CASES[name].keys:
            assert torch.allclose(flipped.tensors[key], swapped.tensors[key], atol=0.51)
