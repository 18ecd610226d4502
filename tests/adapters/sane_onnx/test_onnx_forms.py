"""The forms in which ONNX files keep weights: quantised, sparse, in branches, functions, other files."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxfiles import assert_permutes, assert_returns, export, opened, run, saved
from torch import nn

from sane_plugins.errors import SourceError, UsageError
from sane_plugins.host import Host
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import detokenize, tokenize

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
FLOAT = TensorProto.FLOAT


def _cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 8 * 8, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 1, 12, 12)).astype(np.float32)


def _model(path: Path, nodes, tensors, shape=(2, 6), opset: int = 21, **options) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        tensors,
        sparse_initializer=options.pop("sparse", None),
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    imports += [helper.make_opsetid("own", 1)] * ("functions" in options)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, **options), path)
    return path


def _array(name: str, *shape: int, seed: int = 0):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def _rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 6)).astype(np.float32)


# Quantised.


class _Reader:
    """Calibration images for onnxruntime's static quantisation."""

    def __init__(self, name: str) -> None:
        self._images = iter([{name: _image(seed)} for seed in range(4)])

    def get_next(self):
        return next(self._images, None)


def _quantized(kind: str, per_channel: bool, folder: Path) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    source = export(_cnn(), torch.from_numpy(_image()), folder / "float.onnx", False)
    target = folder / "quantised.onnx"
    if kind == "dynamic":
        quantization.quantize_dynamic(source, target, per_channel=per_channel)
    else:
        form = getattr(quantization.QuantFormat, kind)
        quantization.quantize_static(
            source,
            target,
            _Reader(onnx.load(source).graph.input[0].name),
            form,
            per_channel=per_channel,
            weight_type=quantization.QuantType.QInt8,
        )
    return target


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QOperator"])
def test_a_quantised_file_is_read_in_full_and_returns(
    kind: str, per_channel: bool, tmp_path: Path
) -> None:
    path = _quantized(kind, per_channel, tmp_path)
    graph, module = opened(path), _cnn()
    assert graph.coverage == 1
    weights = [p for p in graph.params if len(p.shape) > 1]
    matrices = [p for p in module.parameters() if p.ndim > 1]
    assert [p.size for p in weights] == [p.numel() for p in matrices]
    for param, tensor in zip(weights, matrices, strict=True):
        found = graph.tensors[param.key]
        assert "dequantised" in graph.converted[param.key]
        near = found.T if found.shape != tensor.shape else found
        # One step of 255 over the range of the values, half of it on either side.
        assert (near - tensor).abs().max() <= 1.01 * tensor.abs().max() / 127
    assert_returns(path, tmp_path, _image(9))
    assert assert_permutes(path, tmp_path, _image(9)) >= 3


@pytest.mark.filterwarnings("ignore")
def test_new_values_are_quantised_again_or_refused(tmp_path: Path) -> None:
    path = _quantized("QDQ", False, tmp_path)
    graph = opened(path)
    key = next(p.key for p in graph.params if len(p.shape) == 4)
    half = graph.replace({key: graph.tensors[key] / 2})
    written = opened(saved(half, tmp_path / "half.onnx"))
    step = graph.tensors[key].abs().max() / 127
    assert (written.tensors[key] - half.tensors[key]).abs().max() <= 0.51 * step
    with pytest.raises(SourceError, match="beyond what its scales can hold"):
        saved(graph.replace({key: graph.tensors[key] * 9}), tmp_path / "large.onnx")
    assert not (tmp_path / "large.onnx").exists()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_quantised_blocks_are_read_and_written(bits: int, has_zeros: bool, tmp_path: Path) -> None:
    rng, blocks, size = np.random.default_rng(0), 3, 16
    stored = rng.integers(0, 256, (5, blocks, size * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, 5 * blocks).astype(np.float32)
    tensors = [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(scales, "s")]
    if has_zeros:
        zeros = rng.integers(0, 256, 5 * -(-blocks * bits // 8), dtype=np.uint8)
        tensors.append(numpy_helper.from_array(zeros, "z"))
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"] + ["z"] * has_zeros,
        ["y"],
        domain="com.microsoft",
        K=44,
        N=5,
        bits=bits,
        block_size=size,
    )
    path = _model(tmp_path / "m.onnx", [node], tensors, shape=(44, 44))
    graph = opened(path)
    (param,) = graph.params
    assert (param.shape, param.axis, graph.coverage) == ((5, 44), 0, 1)
    (answer,) = run(path, np.eye(44, dtype=np.float32))
    assert np.allclose(answer.T, graph.tensors["w"].numpy(), atol=1e-5)
    assert_returns(path, tmp_path, np.eye(44, dtype=np.float32))
    half = graph.replace({"w": graph.tensors["w"] * 0.5})
    again = opened(saved(half, tmp_path / "half.onnx")).tensors["w"]
    assert (again - half.tensors["w"]).abs().max() <= 0.051  # half of the largest step
    with pytest.raises(SourceError, match="beyond what its scales can hold"):
        saved(graph.replace({"w": graph.tensors["w"] * 9}), tmp_path / "large.onnx")


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "FLOAT8E4M3FN", "INT8"])
def test_small_types_behind_dequantize_are_read(kind: str, tmp_path: Path) -> None:
    values = np.arange(-8, 7).reshape(3, 5) + (8 if kind == "UINT4" else 0)
    weight = helper.make_tensor("w", TensorProto.DataType.Value(kind), (3, 5), values.reshape(-1))
    scale = numpy_helper.from_array(np.float32([0.1, 0.2, 0.3, 0.4, 0.5]), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["1"], axis=1),
        helper.make_node("MatMul", ["x", "1"], ["y"]),
    ]
    path = _model(tmp_path / "m.onnx", nodes, [weight, scale], shape=(3, 3))
    graph = opened(path)
    expected = values * np.float32([0.1, 0.2, 0.3, 0.4, 0.5])
    assert np.allclose(graph.tensors["w"].numpy(), expected, atol=1e-6)
    assert [layer.kind for layer in graph.layers if layer.params] == ["linear"]
    rolled = graph.replace({"w": graph.tensors["w"].roll(1, 1)})
    again = opened(saved(rolled, tmp_path / "rolled.onnx"))
    if kind != "FLOAT8E4M3FN":  # its scales stay: the values round
        assert torch.allclose(again.tensors["w"], rolled.tensors["w"], atol=1e-6)
    same = opened(saved(detokenize(tokenize(graph, 4), graph), tmp_path / "same.onnx"))
    assert torch.equal(same.tensors["w"], graph.tensors["w"])


def test_eight_bit_floats_beyond_their_range_are_refused(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, (2, 2), [1, 2, 3, 4])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["1"]),
        helper.make_node("MatMul", ["x", "1"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    graph = opened(_model(tmp_path / "m.onnx", nodes, [weight, scale], shape=(2, 2)))
    small = graph.replace({"w": graph.tensors["w"] * 1.7})
    again = opened(saved(small, tmp_path / "small.onnx")).tensors["w"]
    assert torch.allclose(again, small.tensors["w"], rtol=0.07)
    with pytest.raises(SourceError, match="have no place"):
        saved(graph.replace({"w": graph.tensors["w"] * 1e4}), tmp_path / "large.onnx")
    assert not (tmp_path / "large.onnx").exists()


def test_scales_that_two_weights_share_are_not_torn_apart(tmp_path: Path) -> None:
    """Each may bring its own order of channels; one list of scales cannot follow both."""
    rng = np.random.default_rng(0)
    integers = [rng.integers(-127, 128, (4, 4)).astype(np.int8) for _ in range(2)]
    tensors = [numpy_helper.from_array(x, f"w{i}") for i, x in enumerate(integers)]
    tensors.append(numpy_helper.from_array(np.float32([0.1, 0.23, 0.37, 0.51]), "s"))
    nodes = [
        helper.make_node("DequantizeLinear", ["w0", "s"], ["d0"], axis=1),
        helper.make_node("MatMul", ["x", "d0"], ["h"]),
        helper.make_node("DequantizeLinear", ["w1", "s"], ["d1"], axis=1),
        helper.make_node("MatMul", ["h", "d1"], ["y"]),
    ]
    graph = opened(_model(tmp_path / "m.onnx", nodes, tensors, shape=(2, 4)))
    both = graph.replace(
        {"w0": graph.tensors["w0"].roll(1, 1), "w1": graph.tensors["w1"].roll(2, 1)}
    )
    with pytest.raises(SourceError, match="have no place"):
        saved(both, tmp_path / "both.onnx")
    alike = graph.replace({key: graph.tensors[key].roll(1, 1) for key in ("w0", "w1")})
    again = opened(saved(alike, tmp_path / "alike.onnx"))
    assert all(torch.allclose(again.tensors[k], alike.tensors[k], atol=1e-5) for k in ("w0", "w1"))


# Sparse, filled, recurrent.


def test_sparse_weights_stay_sparse(tmp_path: Path) -> None:
    dense = np.zeros((6, 4), np.float32)
    dense[[0, 2, 5], [1, 3, 0]] = [1.5, -2, 3]
    values = numpy_helper.from_array(np.float32([1.5, -2, 3]), "w")
    indices = numpy_helper.from_array(np.int64([1, 11, 20]), "i")
    sparse = helper.make_sparse_tensor(values, indices, [6, 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = _model(tmp_path / "m.onnx", [node], [], sparse=[sparse])
    graph = opened(path)
    assert np.array_equal(graph.tensors["w"].numpy(), dense)
    for name, new in (("same", graph.tensors["w"] * 2), ("moved", graph.tensors["w"].roll(1, 0))):
        written = saved(graph.replace({"w": new}), tmp_path / f"{name}.onnx")
        assert torch.equal(opened(written).tensors["w"], new)
        assert len(onnx.load(written).graph.sparse_initializer[0].values.dims) == 1
        assert np.allclose(run(written, _rows())[0], _rows() @ new.numpy(), atol=1e-5)


def test_filled_weights_become_constants_when_they_change(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["to"], ["w"], value=helper.make_tensor("v", FLOAT, [1], [0.5])
        ),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.int64([6, 3]), "to")
    path = _model(tmp_path / "m.onnx", nodes, [shape])
    graph = opened(path)
    assert torch.equal(graph.tensors["w"], torch.full((6, 3), 0.5))
    new = torch.arange(18.0).reshape(6, 3)
    for value in (torch.full((6, 3), 2.0), new):
        written = saved(graph.replace({"w": value}), tmp_path / "new.onnx")
        assert np.allclose(run(written, _rows())[0], _rows() @ value.numpy(), atol=1e-5)
        assert torch.equal(opened(written).tensors["w"], value)


def test_a_terabyte_of_one_value_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["to"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    nodes[0].attribute.append(
        helper.make_attribute("value", helper.make_tensor("v", FLOAT, [1], [1]))
    )
    shape = numpy_helper.from_array(np.int64([10**6, 10**6]), "to")
    path = _model(tmp_path / "m.onnx", nodes, [shape, _array("k", 6, 6)])
    graph = opened(path)
    assert [p.key for p in graph.params] == ["k"]
    assert graph.missed == {"w": 10**12}
    assert "MiB" in graph.untouched["w"]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_have_their_gates_as_outputs(kind, gates: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(3, 1, 6)
    path = export(kind(6, 5, bidirectional=True), example, tmp_path / "m.onnx", False)
    (layer,) = [x for x in opened(path).layers if x.kind == "recurrent"]
    weights = [p for p in layer.params if p.role == "weight"]
    assert [(p.shape, p.axis) for p in weights] == [((2, gates * 5, 6), 1), ((2, gates * 5, 5), 1)]
    assert opened(path).coverage == 1
    assert_returns(path, tmp_path, example.numpy())
    assert_permutes(path, tmp_path, example.numpy())


# Branches and functions.


def test_weights_in_branches_are_read_by_what_they_do(tmp_path: Path) -> None:
    branches = []
    for name in ("then", "else"):
        nodes = [
            helper.make_node("Constant", [], ["b"], value=_array("", 4, seed=len(name))),
            helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1),
        ]
        out = helper.make_tensor_value_info("z", FLOAT, (2, 4))
        branches.append(
            helper.make_graph(nodes, name, [], [out], [_array("w", 4, 6, seed=ord(name[0]))])
        )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["c"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    path = _model(tmp_path / "m.onnx", nodes, [])
    graph = opened(path)
    linear = [[p.key for p in layer.params] for layer in graph.layers if layer.kind == "linear"]
    assert sorted(linear) == [[f"if/{x}_branch/w", f"if/{x}_branch/b"] for x in ("else", "then")]
    assert_returns(path, tmp_path, _rows())
    key = "if/then_branch/w"
    new = saved(graph.replace({key: torch.ones(4, 6)}), tmp_path / "new.onnx")
    assert torch.equal(opened(new).tensors[key], torch.ones(4, 6))
    assert torch.equal(opened(new).tensors["if/else_branch/w"], graph.tensors["if/else_branch/w"])


def _function(name: str, calls: list[str]):
    body = [helper.make_node(call, ["a"], [f"t{i}"], domain="own") for i, call in enumerate(calls)]
    body.append(helper.make_node("Identity", ["t0"], ["o"]))
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["o"], body, imports)


def test_functions_are_looked_into(tmp_path: Path) -> None:
    body = [
        helper.make_node("Constant", [], ["k"], value=_array("", 6, 6)),
        helper.make_node("MatMul", ["a", "k"], ["1"]),
        helper.make_node("Add", ["1", "b"], ["2"]),
        helper.make_node("LeakyRelu", ["2"], ["o"]),
    ]
    attribute = body[3].attribute.add(name="alpha", ref_attr_name="slope")
    attribute.type = onnx.AttributeProto.FLOAT
    imports = [helper.make_opsetid("", 21)]
    function = helper.make_function("own", "block", ["a", "b"], ["o"], body, imports, ["slope"])
    nodes = [
        helper.make_node("block", ["x", "b1"], ["h"], domain="own", slope=0.1),
        helper.make_node("block", ["h", "b2"], ["y"], domain="own", slope=0.2),
    ]
    tensors = [_array("b1", 6, seed=1), _array("b2", 6, seed=2)]
    path = _model(tmp_path / "m.onnx", nodes, tensors, functions=[function])
    graph = opened(path)
    assert sorted(p.size for p in graph.params) == [6, 6, 36]
    assert sum(layer.kind == "linear" for layer in graph.layers) == 2
    assert_returns(path, tmp_path, _rows())
    assert_permutes(path, tmp_path, _rows())
    new = saved(graph.replace({p.key: t + 1 for p, t in graph.items()}), tmp_path / "new.onnx")
    assert all(torch.equal(opened(new).tensors[p.key], t + 1) for p, t in graph.items())


def test_functions_without_end_are_refused(tmp_path: Path) -> None:
    endless = [_function("f0", ["f0"])]
    doubling = [_function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(40)]
    doubling.append(
        helper.make_function(
            "own",
            "f40",
            ["a"],
            ["o"],
            [helper.make_node("Relu", ["a"], ["o"])],
            [helper.make_opsetid("", 21)],
        )
    )
    for functions in (endless, doubling):
        node = helper.make_node("f0", ["x"], ["y"], domain="own")
        path = _model(tmp_path / "m.onnx", [node], [_array("w", 6)], functions=functions)
        with pytest.raises(SourceError, match=r"without end|stand for more than"):
            opened(path)


# Classes by consumer.


def test_kernels_are_followed_through_casts_reshapes_and_transposes(tmp_path: Path) -> None:
    half = numpy_helper.from_array(
        np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float16), "k"
    )
    nodes = [
        helper.make_node("Cast", ["k"], ["1"], to=FLOAT),
        helper.make_node("Transpose", ["1"], ["2"], perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["x", "2"], ["y"]),
    ]
    path = _model(tmp_path / "m.onnx", nodes, [half], shape=(1, 2, 6, 6))
    graph = opened(path)
    (layer,) = [x for x in graph.layers if x.params]
    assert (layer.kind, layer.params[0].axis, layer.params[0].dtype) == ("conv", 3, torch.float16)
    image = np.random.default_rng(1).normal(size=(1, 2, 6, 6)).astype(np.float32)
    assert_returns(path, tmp_path, image)


def test_factors_of_gemm_are_told(tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0, transA=0, transB=1)
    path = _model(tmp_path / "m.onnx", [node], [_array("w", 3, 6), _array("b", 3)])
    graph = opened(path)
    assert "alpha 0.5" in graph.converted["w"]
    assert "beta 2" in graph.converted["b"]
    assert_returns(path, tmp_path, _rows())


def test_coefficients_in_attributes_are_weights(sane_data: Path, tmp_path: Path) -> None:
    graph = opened(sane_data / "onnx" / "onnxruntime_testdata" / "lr_mnist_scikit.onnx")
    (layer,) = [x for x in graph.layers if x.params]
    assert layer.kind == "linear"
    assert [p.shape for p in layer.params] == [(10, 780), (10,)]
    new = saved(graph.replace({p.key: t + 1 for p, t in graph.items()}), tmp_path / "new.onnx")
    for param, tensor in graph.items():
        assert torch.equal(opened(new).tensors[param.key], tensor + 1)


def test_sums_of_one_value_and_scales_of_no_channel_are_no_trouble(tmp_path: Path) -> None:
    """Found by damaging files: neither runs, and neither may end in another error than ours."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["1"]), helper.make_node("Add", ["1"], ["y"])]
    graph = opened(_model(tmp_path / "sum.onnx", nodes, [_array("w", 6, 3)]))
    assert [p.key for p in graph.params] == ["w"]
    number = numpy_helper.from_array(np.int8(3), "w")
    scales = numpy_helper.from_array(np.float32([1, 2]), "s")
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])]
    with pytest.raises(SourceError, match="scales do not fit"):
        opened(_model(tmp_path / "scales.onnx", nodes, [number, scales]))


# Other files.


def _external(folder: Path, name: str = "m.onnx") -> Path:
    path = export(_cnn(), torch.from_numpy(_image()), folder / "inline.onnx", False)
    model = onnx.load(path)
    onnx.save_model(
        model, folder / name, save_as_external_data=True, location=f"{name}_data", size_threshold=0
    )
    return folder / name


def test_weights_in_another_file_are_read_and_stay_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = _external(tmp_path / "in")
    graph, plain = opened(path), opened(tmp_path / "in" / "inline.onnx")
    one, other = tokenize(graph, 16), tokenize(plain, 16)
    assert torch.equal(one.values, other.values)
    assert_returns(path, tmp_path / "out", _image(3))
    assert assert_permutes(path, tmp_path / "out", _image(3)) == 3
    assert (tmp_path / "out" / "same.onnx.data").stat().st_size > graph.size * 4
    assert (tmp_path / "out" / "same.onnx").stat().st_size < 4000
    (tmp_path / "out" / "same.onnx").unlink()
    with pytest.raises(UsageError, match=r"same\.onnx\.data: it exists"):
        Host.installed().save(graph, tmp_path / "out" / "same.onnx")


def test_a_data_file_that_is_lost_or_cut_is_told(tmp_path: Path) -> None:
    path = _external(tmp_path)
    data = path.with_name("m.onnx_data")
    shutil.copy(data, tmp_path / "copy")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(SourceError, match=r"m\.onnx_data"):
        opened(path)
    data.unlink()
    with pytest.raises(SourceError, match=r"m\.onnx_data"):
        opened(path)


def test_the_hugging_face_cache_can_be_read(tmp_path: Path) -> None:
    real = _external(tmp_path)
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("m.onnx", "m.onnx_data"):
        shutil.move(tmp_path / name, blobs / f"hash-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-{name}")
    assert real.name == "m.onnx"
    assert opened(snapshot / "m.onnx").coverage == 1


def test_outside_values_are_read_and_written_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Twenty-four tensors of 16 MiB; beside torch itself there is room for one of them and a rest."""
    tensors, nodes, size = [], [], 4 * 2048 * 2048
    with (tmp_path / "m.data").open("wb") as file:
        file.truncate(24 * size)
    for i in range(24):
        tensor = TensorProto(name=f"w{i}", data_type=FLOAT, dims=[2048, 2048])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "m.data"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("Identity", ["h24"], ["y"]))
    _model(tmp_path / "m.onnx", nodes, tensors, shape=(1, 2048))
    script = (
        "import resource, sys, torch, onnx, sane_onnx, sane_onnx.read, sane_onnx.write\n"
        "from pathlib import Path\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, folder = peak(), Path(sys.argv[1])\n"
        "graph = sane_onnx.sane_open(folder / 'm.onnx')\n"
        "assert sum(int(t.count_nonzero()) for _, t in graph.items()) == 0\n"
        "sane_onnx.sane_save(graph, folder / 'out.onnx', None, None)\n"
        "print((peak() - before) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16 + 200
    assert (tmp_path / "out.onnx.data").stat().st_size == 24 * size


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless"])
def test_networks_inside_branches_are_permuted(sane_data: Path, name: str, tmp_path: Path) -> None:
    """A real detector of speech, whose networks for two sampling rates lie in nested branches."""
    ort = pytest.importorskip("onnxruntime")
    path = sane_data / "onnx" / "pypi_silero_vad" / f"{name}.onnx"
    graph, rng = opened(path), np.random.default_rng(0)
    groups = permutation_groups(graph)
    assert len(groups) == 6
    rows = random_permutations(groups, torch.Generator().manual_seed(1))
    moved = saved(permute(graph, rows), tmp_path / "moved.onnx")
    state = rng.normal(size=(2, 1, 128)).astype(np.float32)
    for rate, width in ((16000, 576), (8000, 288)):
        sound = (rng.normal(size=(1, width)) / 3).astype(np.float32)
        feeds = {"input": sound, "state": state, "sr": np.array(rate)}
        one, other = (
            ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)
            for p in (path, moved)
        )
        assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["net.model", "net", "net.pt", "net.ONNX"])
def test_content_decides(name: str, tmp_path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    _model(tmp_path / "net.onnx", [node], [_array("w", 6, 3)])
    (tmp_path / "net.onnx").rename(tmp_path / name)
    assert Host.installed().open(tmp_path / name).container == "onnx"


def test_a_checkpoint_of_this_suffix_is_a_checkpoint(tmp_path) -> None:
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "net.onnx")
    assert Host.installed().open(tmp_path / "net.onnx").container == "checkpoint"
