"""What is no weight is left out, what may be one and is not read is counted, whichever operator reads it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxfiles import assert_permutes, assert_returns, opened, run, saved

from sane_plugins.host import Host

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
MICROSOFT = "com.microsoft"
node = helper.make_node
rng = np.random.default_rng(0)


def _floats(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _integers(*shape: int, dtype: str = "int8") -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -100), min(info.max, 255), shape).astype(dtype)


def _number(value: float, dtype: str = "float32") -> np.ndarray:
    return np.array(value, dtype)


def _model(
    path: Path, nodes: Sequence, tensors: dict, inputs: dict | None = None, **options: object
) -> Path:
    inputs = {"x": (FLOAT, [None, 12])} if inputs is None else inputs
    stored = [
        x if isinstance(x, onnx.TensorProto) else numpy_helper.from_array(np.asarray(x), name)
        for name, x in tensors.items()
    ]
    made = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    result = [helper.make_tensor_value_info("y", FLOAT, None)]
    graph = helper.make_graph(nodes, "g", made, result, stored)
    imports = [helper.make_opsetid(*x) for x in (("", 21), (MICROSOFT, 1), ("own", 1))]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, **options), path)
    return path


LAST = node("MatMul", ["h", "last"], ["y"])
LAST_WEIGHTS = _floats(8, 3)


def _bits(**sizes: int):
    return node("MatMulNBits", ["x", "q", "s"], ["h"], domain=MICROSOFT, N=8, K=12, **sizes)


COUNTED = {
    "unknown operator": ([node("F", ["x", "q"], ["h"], domain="own")], {"q": _integers(12, 8)}, 96),
    "eight in an int32": (
        [node("QuantLinear", ["x", "q"], ["h"], domain="own", bits=4)],
        {"q": _integers(12, 8, dtype="int32")},
        768,
    ),
    "two in a byte": (
        [
            node("BitwiseAnd", ["q", "mask"], ["low"]),
            node("BitShift", ["q", "four"], ["high"], direction="RIGHT"),
            node("Concat", ["low", "high"], ["all"], axis=0),
            node("Cast", ["all"], ["w"], to=FLOAT),
            node("MatMul", ["x", "w"], ["h"]),
        ],
        {
            "q": _integers(6, 8, dtype="uint8"),
            "mask": _number(15, "uint8"),
            "four": _number(4, "uint8"),
        },
        96,
    ),
    "three bits": (
        [_bits(bits=3, block_size=16)],
        {"q": _integers(8, 1, 6, dtype="uint8"), "s": _floats(8)},
        96,
    ),
    "in the order of one processor": (
        [_bits(bits=4, block_size=16, weight_prepacked=1)],
        {"q": _integers(8, 1, 8, dtype="uint8"), "s": _floats(8)},
        96,
    ),
    "scale per looked up place": (
        [
            node("Cast", ["q"], ["c"], to=TensorProto.INT32),
            node("Abs", ["c"], ["a"]),
            node("Cast", ["a"], ["w"], to=FLOAT),
            node("MatMul", ["x", "w"], ["h"]),
        ],
        {"q": _integers(12, 8)},
        96,
    ),
    "another scale beside": (
        [
            node("DequantizeLinear", ["last", "s"], ["w"]),
            node("DequantizeLinear", ["last", "t"], ["u"]),
            node("MatMul", ["x", "w"], ["a"]),
            node("MatMul", ["x", "u"], ["b"]),
            node("Add", ["a", "b"], ["y"]),
        ],
        {"last": _integers(12, 2), "s": _number(0.1), "t": _number(0.2)},
        24,
    ),
    "complex": (
        [node("F", ["x", "q"], ["h"], domain="own")],
        {"q": (_floats(12, 8) + 1j * _floats(12, 8)).astype("complex64")},
        96,
    ),
    "QMoE in the order of one processor": (
        [
            node(
                "QMoE",
                ["x", "r", "q", "s", "", "p", "t"],
                ["h"],
                domain=MICROSOFT,
                k=1,
                expert_weight_bits=4,
            )
        ],
        {
            "q": _integers(2, 4, 6, dtype="uint8"),
            "s": _floats(2, 4),
            "p": _integers(2, 12, 2, dtype="uint8"),
            "t": _floats(2, 12),
            "r": _floats(1, 2),
        },
        2 * 2 * 48,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_not_understood_is_counted_in_weights(name: str, tmp_path: Path) -> None:
    nodes, tensors, count = COUNTED[name]
    if "last" not in tensors:
        nodes, tensors = [*nodes, LAST], {**tensors, "last": LAST_WEIGHTS}
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors))
    assert sum(graph.missed.values()) == count
    assert graph.coverage == graph.size / (graph.size + count) < 1
    assert set(graph.missed) <= set(graph.untouched)


def test_integers_with_a_scale_that_is_an_input_are_counted(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), node("MatMul", ["x", "w"], ["h"]), LAST]
    inputs = {"x": (FLOAT, [None, 12]), "s": (FLOAT, [])}
    tensors = {"q": _integers(12, 8), "last": LAST_WEIGHTS}
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors, inputs))
    assert graph.missed == {"q": 96}


MASKS = {
    "infinities": np.triu(np.full((12, 12), -np.inf, np.float32), 1),
    "largest numbers": np.triu(np.full((12, 12), np.finfo(np.float32).min, np.float32), 1),
    "slopes": np.triu(np.full((12, 12), -np.inf, np.float32), 1) + np.tril(_floats(12, 12)),
}
ONE = np.array([0], np.int64)
NO_WEIGHTS = {
    **{name: ([node("Add", ["x", "q"], ["h"])], {"q": mask}) for name, mask in MASKS.items()},
    "cut out": (
        [
            node("Slice", ["q", "zero", "end"], ["a"]),
            node("Unsqueeze", ["a", "zero"], ["b"]),
            node("Add", ["x", "b"], ["h"]),
        ],
        {
            "q": np.triu(np.full((20, 12), -np.inf, np.float32), 1),
            "zero": ONE,
            "end": ONE + 12,
        },
    ),
    "filled": (
        [
            node(
                "ConstantOfShape",
                ["to"],
                ["a"],
                value=numpy_helper.from_array(np.float32([-np.inf])),
            ),
            node("Trilu", ["a", "one"], ["b"]),
            node("Add", ["x", "b"], ["h"]),
        ],
        {"to": np.array([12, 12]), "one": np.array(1)},
    ),
    "chosen": (
        [node("Where", ["c", "x", "q"], ["h"])],
        {"c": np.tril(np.ones((12, 12), bool)), "q": _number(-np.inf)},
    ),
    "zeros and ones": (
        [node("Cast", ["q"], ["a"], to=FLOAT), node("Mul", ["x", "a"], ["h"])],
        {"q": np.tril(np.ones((12, 12), np.int64))},
    ),
    "positions": (
        [
            node("Cast", ["q"], ["a"], to=FLOAT),
            node("Mul", ["a", "s"], ["b"]),
            node("Add", ["x", "b"], ["h"]),
        ],
        {"q": np.arange(12), "s": _number(0.1)},
    ),
    "state at the start": (
        [
            node("Expand", ["q", "to"], ["state"]),
            node("Unsqueeze", ["x", "zero"], ["t"]),
            node("GRU", ["t", "w", "r", "", "", "state"], ["", "g"], hidden_size=12),
            node("Squeeze", ["g", "zero"], ["h"]),
        ],
        {
            "q": np.zeros((1, 1, 12), np.float32),
            "to": np.array([1, 12, 12]),
            "zero": ONE,
            "w": _floats(1, 36, 12),
            "r": _floats(1, 36, 12),
        },
    ),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_no_weight_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    nodes, tensors = NO_WEIGHTS[name]
    nodes = [*nodes, node("Softmax", ["h"], ["p"]), node("MatMul", ["p", "last"], ["y"])]
    tensors = {**tensors, "last": _floats(12, 3)}
    path = _model(tmp_path / "m.onnx", nodes, tensors, {"x": (FLOAT, [12, 12])})
    graph = opened(path).require_finite()
    assert {param.key for param in graph.params} - {"w", "r", "s"} == {"last"}
    assert (graph.coverage, graph.missed) == (1, {})
    assert "a" in graph.untouched if name == "filled" else "q" in graph.untouched
    assert_returns(path, tmp_path, _floats(12, 12))


def test_a_network_with_a_mask_of_infinities_is_embedded(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "q"], ["h"]), node("MatMul", ["h", "last"], ["y"])]
    tensors = {"q": MASKS["infinities"], "last": _floats(12, 3)}
    path = _model(tmp_path / "m.onnx", nodes, tensors)
    host, graph = Host.installed(), opened(path)
    assert host.encode(graph).latents.isfinite().all()
    assert host.predict(graph)


def test_a_bias_that_diverged_is_no_mask(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "last"], ["h"]), node("Add", ["h", "b"], ["y"])]
    tensors = {"last": _floats(12, 3), "b": np.float32([1, np.inf, 2])}
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors))
    assert not graph.is_finite


def _small(name: str, count: int):
    return {f"{name}{i}": _number(0.1 * (i + 1)) for i in range(count)}


SCALED = {
    "QLinearAdd": ["q", "s0", "z", "q", "s1", "z", "s2", "z"],
    "QLinearMul": ["q", "s0", "z", "q", "s1", "z", "s2", "z"],
    "QLinearLeakyRelu": ["q", "s0", "z", "s1", "z"],
    "QLinearSigmoid": ["q", "s0", "z", "s1", "z"],
    "QLinearSoftmax": ["q", "s0", "z", "s1", "z"],
    "QLinearConcat": ["s2", "z", "q", "s0", "z", "q", "s1", "z"],
    "QLinearReduceMean": ["q", "s0", "z", "s1", "z"],
    "QLinearAveragePool": ["q", "s0", "z", "s1", "z"],
    "QLinearGlobalAveragePool": ["q", "s0", "z", "s1", "z"],
    "QLinearWhere": ["c", "q", "s0", "z", "q", "s1", "z", "s2", "z"],
}


@pytest.mark.parametrize("operator", SCALED)
def test_scales_of_activations_are_settings(operator: str, tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s0", "z"], ["q"]),
        node(operator, SCALED[operator], ["r"], domain=MICROSOFT),
        node("DequantizeLinear", ["r", "s2", "z"], ["h"]),
        node("MatMul", ["h", "last"], ["y"]),
    ]
    inputs = {"x": (FLOAT, [None, 12]), "c": (BOOL, [None, 12])}
    tensors = {**_small("s", 3), "z": _number(3, "uint8"), "last": _floats(12, 3)}
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors, inputs))
    assert [param.key for param in graph.params] == ["last"]
    assert graph.coverage == 1


@pytest.mark.parametrize("position", ["first", "second"])
def test_integers_beside_an_activation_are_weights(position: str, tmp_path: Path) -> None:
    """A table of positions that is added in integers is a weight, on either side of the sum."""
    sides = [["q", "s0", "z"], ["p", "s1", "z"]]
    first, second = sides if position == "second" else sides[::-1]
    nodes = [
        node("QuantizeLinear", ["x", "s0", "z"], ["q"]),
        node("QLinearAdd", [*first, *second, "s2", "z"], ["r"], domain=MICROSOFT),
        node("DequantizeLinear", ["r", "s2", "z"], ["h"]),
        node("MatMul", ["h", "last"], ["y"]),
    ]
    table = _integers(5, 12, dtype="uint8")
    tensors = {**_small("s", 3), "z": _number(3, "uint8"), "p": table, "last": _floats(12, 3)}
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors, {"x": (FLOAT, [5, 12])}))
    assert {param.key for param in graph.params} == {"p", "last"}
    assert np.allclose(graph.tensors["p"], (table.astype(np.float32) - 3) * np.float32(0.2))


# Operators of onnxruntime with weights in forms of their own.


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "plain"])
@pytest.mark.parametrize("has_groups", [False, True])
def test_blocks_of_every_kind_are_what_onnxruntime_uses(
    bits: int, zeros: str, has_groups: bool, tmp_path: Path
) -> None:
    rows, columns, size, blocks = 5, 44, 16, 3
    tensors = {
        "q": _integers(rows, blocks, size * bits // 8, dtype="uint8"),
        "s": rng.uniform(0.1, 1, (rows, blocks)).astype(np.float32),
    }
    if zeros == "packed":
        tensors["z"] = _integers(rows, -(-blocks * bits // 8), dtype="uint8")
    elif zeros == "plain":
        tensors["z"] = rng.uniform(0, 2**bits - 1, (rows, blocks)).astype(np.float32)
    if has_groups:
        tensors["g"] = rng.integers(0, blocks, columns).astype(np.int32)
    names = [name if name in tensors else "" for name in ("q", "s", "z", "g")]
    while not names[-1]:
        names.pop()
    sizes = {"K": columns, "N": rows, "bits": bits, "block_size": size}
    made = node("MatMulNBits", ["x", *names], ["y"], domain=MICROSOFT, **sizes)
    last = [node("Identity", ["y"], ["last"]), node("MatMul", ["last", "end"], ["u"])]
    tensors["end"] = _floats(rows, 2)
    inputs = {"x": (FLOAT, [None, columns])}
    path = _model(tmp_path / "m.onnx", [made, *last], tensors, inputs)
    graph = opened(path)
    if has_groups and (bits != 4 or zeros == "packed"):
        # onnxruntime does not compute this as it is stated, so neither reading is that of all.
        assert graph.missed == {"q": rows * columns}
        return
    assert (graph.size, graph.coverage) == (rows * columns + 2 * rows, 1)
    codes = np.stack(
        [(tensors["q"] >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1
    ).reshape(rows, -1)[:, :columns]
    index = tensors["g"] if has_groups else np.arange(columns) // size
    middle = np.full((rows, blocks), 2.0 ** (bits - 1), np.float32)
    if zeros == "packed":
        parts = [(tensors["z"] >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        middle = np.stack(parts, axis=-1).reshape(rows, -1)[:, :blocks].astype(np.float32)
    elif zeros == "plain":
        middle = tensors["z"]
    expected = (codes - middle[:, index]) * tensors["s"][:, index]
    assert np.allclose(graph.tensors["q"], expected, atol=1e-4)
    try:
        (answer,) = run(path, np.eye(columns, dtype=np.float32))
    except Exception as error:  # a combination that this version does not compute
        if type(error).__module__.partition(".")[0] != "onnxruntime":
            raise
    else:
        assert np.allclose(answer.T, expected, atol=1e-3)
    saved(graph, tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == path.read_bytes()
    half = graph.replace({"q": graph.tensors["q"] / 2})
    again = opened(saved(half, tmp_path / "half.onnx")) if zeros != "plain" else half
    assert (again.tensors["q"] - half.tensors["q"]).abs().max() <= 0.51


@pytest.mark.parametrize("scales", ["one", "direction", "channel"])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_quantised_lstm_is_read_per_direction(
    scales: str, directions: int, tmp_path: Path
) -> None:
    hidden, width = 4, 6
    shape = {"one": (1,), "direction": (directions,), "channel": (directions, 4 * hidden)}[scales]
    if scales == "one" and directions == 2:
        pytest.skip("one scale for two directions is not allowed")
    integers = {
        "W": _integers(directions, width, 4 * hidden),
        "R": _integers(directions, hidden, 4 * hidden),
    }
    numbers = {f"{x}s": rng.uniform(0.01, 0.1, shape).astype(np.float32) for x in integers}
    zeros = {f"{x}z": np.zeros(shape, np.int8) for x in integers}
    names = ["x", "W", "R", "B", "", "", "", "", "Ws", "Wz", "Rs", "Rz"]
    direction = "bidirectional" if directions == 2 else "forward"
    made = node(
        "DynamicQuantizeLSTM",
        names,
        ["y"],
        domain=MICROSOFT,
        hidden_size=hidden,
        direction=direction,
    )
    tensors = {**integers, **numbers, **zeros, "B": _floats(directions, 8 * hidden)}
    path = _model(tmp_path / "m.onnx", [made], tensors, {"x": (FLOAT, [3, 1, width])})
    graph = opened(path)
    assert graph.coverage == 1
    (layer,) = (layer for layer in graph.layers if layer.params)
    assert layer.kind == "recurrent"
    for key, values in integers.items():
        scale = numbers[f"{key}s"].reshape(len(shape) > 0 and shape[0], 1, -1)
        assert np.allclose(graph.tensors[key], values * scale, atol=1e-5)
    assert_returns(path, tmp_path, _floats(3, 1, width))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [0, 16])
def test_experts_are_read_in_their_own_order(bits: int, block: int, tmp_path: Path) -> None:
    experts, rows, columns = 3, 16, 32
    shapes = {"q": (experts, rows, columns), "p": (experts, columns, rows)}
    tensors, expected = {"r": _floats(1, experts)}, {}
    for (key, shape), scale in zip(shapes.items(), "st", strict=True):
        tensors[key] = _integers(*shape[:2], shape[2] * bits // 8, dtype="uint8")
        count = shape[:2] if not block else (*shape[:2], shape[2] // block)
        tensors[scale] = rng.uniform(0.1, 1, count).astype(np.float32)
        parts = [(tensors[key] >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        codes = np.stack(parts, axis=-1).reshape(shape) - 2.0 ** (bits - 1)
        wide = np.repeat(tensors[scale].reshape(*shape[:2], -1), block or shape[2], axis=2)
        expected[key] = codes * wide
    options = {"k": 1, "expert_weight_bits": bits, "weights_prepacked": 0, "block_size": block}
    options = {name: x for name, x in options.items() if x or name == "weights_prepacked"}
    made = node("QMoE", ["x", "r", "q", "s", "", "p", "t"], ["y"], domain=MICROSOFT, **options)
    path = _model(tmp_path / "m.onnx", [made], tensors, {"x": (FLOAT, [None, columns])})
    graph = opened(path)
    assert graph.coverage == 1
    for key, values in expected.items():
        assert np.allclose(graph.tensors[key], values, atol=1e-4)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
@pytest.mark.parametrize("operator", ["FusedConv"])
def test_a_summed_input_joins_its_channels(operator: str, activation: str, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["h"], pads=[1, 1, 1, 1]),
        node("Conv", ["h", "w4"], ["k"]),
        node(
            operator,
            ["h", "w2", "b2", "k"],
            ["s"],
            domain=MICROSOFT,
            activation=activation,
            pads=[1, 1, 1, 1],
        ),
        node("Conv", ["s", "w3"], ["t"]),
        node("Add", ["t", "t"], ["y"]),
    ]
    tensors = {
        "w1": _floats(8, 3, 3, 3),
        "b1": _floats(8),
        "w2": _floats(8, 8, 3, 3),
        "b2": _floats(8),
        "w3": _floats(4, 8, 1, 1),
        "w4": _floats(8, 8, 1, 1),
    }
    path = _model(tmp_path / "m.onnx", nodes, tensors, {"x": (FLOAT, [1, 3, 6, 6])})
    assert assert_permutes(path, tmp_path, _floats(1, 3, 6, 6)) == 2


def test_a_state_that_a_layer_gives_keeps_its_channels(tmp_path: Path) -> None:
    """The state at the start of a GRU comes from a layer, whose channels it then reads in order."""
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Unsqueeze", ["a", "zero"], ["state"]),
        node("Unsqueeze", ["x", "zero"], ["t"]),
        node("GRU", ["t", "w", "r", "", "", "state"], ["", "g"], hidden_size=4),
        node("Squeeze", ["g", "zero"], ["y"]),
    ]
    tensors = {"w0": _floats(12, 4), "w": _floats(1, 12, 12), "r": _floats(1, 12, 4), "zero": ONE}
    path = _model(tmp_path / "m.onnx", nodes, tensors)
    assert_permutes(path, tmp_path, _floats(3, 12))


def test_weights_rounded_in_the_graph_are_read_rounded(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    tensors = {"w": _floats(12, 8), "s": _number(0.03), "z": _number(2, "int8")}
    path = _model(tmp_path / "m.onnx", nodes, tensors)
    graph = opened(path)
    (answer,) = run(path, np.eye(12, dtype=np.float32))
    assert np.allclose(graph.tensors["w"], answer, atol=1e-6)
    assert [layer.kind for layer in graph.layers if layer.params] == ["linear"]
    assert_returns(path, tmp_path, _floats(3, 12))
    half = graph.replace({"w": graph.tensors["w"] / 2})
    (after,) = run(saved(half, tmp_path / "half.onnx"), np.eye(12, dtype=np.float32))
    assert np.abs(after - answer / 2).max() <= 0.016


@pytest.mark.parametrize("kind", ["FLOAT4E2M1", "FLOAT8E4M3FN", "INT2", "UINT2"])
def test_numbers_of_few_bits_in_blocks_are_read(kind: str, tmp_path: Path) -> None:
    if not hasattr(TensorProto, kind):
        pytest.skip("this version of onnx has no such type")
    choices = {"INT2": [-2, -1, 0, 1], "UINT2": [0, 1, 2, 3]}.get(kind, [0, 0.5, 1, -1.5, 6, -4])
    values = rng.choice(choices, (12, 8))
    stored = helper.make_tensor("q", TensorProto.DataType.Value(kind), (12, 8), values.reshape(-1))
    scales = rng.uniform(0.1, 1, (3, 8)).astype(np.float32)
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=4),
        node("MatMul", ["x", "w"], ["h"]),
        LAST,
    ]
    tensors = {"q": stored, "s": scales, "last": LAST_WEIGHTS}
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors))
    assert graph.coverage == 1
    expected = values * np.repeat(scales, 4, axis=0)
    assert np.allclose(graph.tensors["q"], expected, atol=1e-6)
    other = torch.from_numpy(
        (rng.choice(choices, (12, 8)) * np.repeat(scales, 4, axis=0)).astype("f")
    )
    again = opened(saved(graph.replace({"q": other}), tmp_path / "other.onnx"))
    assert torch.allclose(again.tensors["q"], other, atol=1e-6)
