"""ONNX files: the same tokens as their checkpoints, the same function after writing, and safe refusals."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxfiles import export, opened
from torch import nn

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.formats import open_file
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import Tokens, WeightGraph, detokenize, from_module, tokenize

onnx = pytest.importorskip("onnx")
sane_onnx = pytest.importorskip("sane_onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto

LENET = "FYH620__lenet-mnist-openvino__lenet"
# Real networks that run, with the sizes to take where a model leaves them open.
RUNNABLE = {
    f"github_wild/{LENET}": 1,
    "onnxruntime_testdata/cnn_mnist_pytorch": 1,
    "onnxruntime_testdata/mnist": 1,
    "onnxruntime_testdata/squeezenet_tensor_input": 1,
    "pypi_basic_pitch/nmp": 1,
    "pypi_rapidocr_onnxruntime/ch_PP-OCRv4_det_infer": 64,
    "pypi_rapidocr_onnxruntime/ch_ppocr_mobile_v2.0_cls_infer": 64,
    "pypi_speechmos/model_v8": 1,
    "pypi_speechmos/plcmos_v2": 64,
}
REFUSED = {
    "bad_names": "no operator set",
    "mul_1.noopset": "no operator set",
    "corrupt-model": "no usable ONNX model",
    "test_arbitrary_external_file": "etc/passwd",
    "test_evil_weights": "_ORT_MEM_ADDR_",
    "model_with_external_initializers": "no weights",
    "model_with_external_initializer_come_from_user": "Pads_not_on_disk",
}


def _session(path: Path):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    model = onnx.load(path)
    results = {value.name for value in model.graph.output}
    for node in model.graph.node:
        # Far from zero these give nearly the same, whatever they read.
        if node.op_type in ("Sigmoid", "Softmax") and results & {*node.output}:
            model.graph.output.append(helper.make_empty_tensor_value_info(node.input[0]))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _outputs(path: Path, size: int = 1) -> list[np.ndarray]:
    """Run a model on fixed random inputs."""
    session, rng = _session(path), np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [
            d if isinstance(d, int) else size if i > 1 else 1 for i, d in enumerate(value.shape)
        ]
        kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[value.type]
        feeds[value.name] = rng.normal(size=shape).astype(kind)
    return [_numbers(answer) for answer in session.run(None, feeds)]


def _numbers(answer) -> np.ndarray:
    """Return an answer's numbers; classifiers give a label and a table of probabilities."""
    if isinstance(answer, list) and isinstance(answer[0], dict):
        return np.array([[row[key] for key in sorted(row)] for row in answer])
    array = np.asarray(answer)
    return array if array.dtype.kind in "fiub" else np.zeros(0)


def _assert_same_tokens(one: Tokens, other: Tokens) -> None:
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.positions, other.positions)


def _shifted(graph: WeightGraph) -> WeightGraph:
    return graph.replace({p.key: t * 2 for p, t in graph.items()})


# The same network as the checkpoint.


@pytest.mark.parametrize("width", [16, 128])
def test_lenet_and_its_checkpoint_have_the_same_tokens(sane_data: Path, width: int) -> None:
    graph = opened(sane_data / "onnx" / "github_wild" / f"{LENET}.onnx")
    checkpoint = open_file(sane_data / "checkpoints" / "github_wild" / f"{LENET}.pth")
    _assert_same_tokens(tokenize(graph, width), tokenize(checkpoint, width))
    assert [p.key for p in graph.params] == [p.key for p in checkpoint.params]
    assert graph.container == "onnx"


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 7),
        nn.Dropout(),
        nn.Linear(7, 3),
    )


class _Sequence(nn.Module):
    """Linear layers on three axes, whose weights exporters transpose and rename; a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.twice(torch.relu(self.twice(self.first(x))))))


NETWORKS = {
    "mlp": (_mlp, (2, 6)),
    "cnn": (_cnn, (2, 1, 12, 12)),
    "sequence": (_Sequence, (2, 4, 6)),
}


def _exported(name: str, path: Path, dynamo: bool, **options: object) -> nn.Module:
    torch.manual_seed(0)
    factory, shape = NETWORKS[name]
    module = factory().eval()
    export(module, torch.randn(shape), path, dynamo, **options)
    return module


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_module_keeps_its_tokens(name: str, dynamo: bool, tmp_path: Path) -> None:
    options = {"external_data": False} if dynamo else {}
    module = _exported(name, tmp_path / "m.onnx", dynamo, **options)
    graph = opened(tmp_path / "m.onnx")
    _assert_same_tokens(tokenize(graph, 16), tokenize(from_module(module), 16))
    groups = permutation_groups(graph)
    assert [g.size for g in groups] == [g.size for g in permutation_groups(from_module(module))]


def test_unfolded_transposes_are_looked_through(tmp_path: Path) -> None:
    module = _exported("sequence", tmp_path / "m.onnx", False, do_constant_folding=False)
    graph = opened(tmp_path / "m.onnx")
    _assert_same_tokens(tokenize(graph, 16), tokenize(from_module(module), 16))
    assert {layer.name for layer in graph.layers if layer.params} >= {"first", "twice", "last"}


# Written back.


@pytest.mark.parametrize("name", RUNNABLE)
def test_unchanged_network_computes_the_same(sane_data: Path, name: str, tmp_path: Path) -> None:
    path = sane_data / "onnx" / f"{name}.onnx"
    graph = opened(path)
    same = detokenize(tokenize(graph, 64), graph)
    for target, network in (("as-read.onnx", graph), ("tokens.onnx", same)):
        assert sane_onnx.sane_save(network, tmp_path / target, None, None) == tmp_path / target
        pairs = zip(
            _outputs(path, RUNNABLE[name]), _outputs(tmp_path / target, RUNNABLE[name]), strict=True
        )
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["as-read.onnx", "tokens.onnx"]


@pytest.mark.parametrize("name", RUNNABLE)
def test_permuted_network_computes_the_same(sane_data: Path, name: str, tmp_path: Path) -> None:
    path = sane_data / "onnx" / f"{name}.onnx"
    graph, rng = opened(path), torch.Generator().manual_seed(1)
    groups = permutation_groups(graph)
    permuted = permute(graph, random_permutations(groups, rng))
    assert any(not torch.equal(graph.tensors[k], permuted.tensors[k]) for k in graph.tensors)
    sane_onnx.sane_save(permuted, tmp_path / "permuted.onnx", None, None)
    pairs = zip(
        _outputs(path, RUNNABLE[name]),
        _outputs(tmp_path / "permuted.onnx", RUNNABLE[name]),
        strict=True,
    )
    for before, after in pairs:
        assert np.allclose(before, after, atol=1e-4 * max(1, np.abs(before).max(initial=0)), rtol=0)


def test_writing_changes_only_what_was_exchanged(sane_data: Path, tmp_path: Path) -> None:
    path = sane_data / "onnx" / "onnxruntime_testdata" / "cnn_mnist_pytorch.onnx"
    graph = opened(path)
    new = graph.replace({"fc2.bias": torch.ones(10)}).replace({"conv1.bias": torch.zeros(10)})
    sane_onnx.sane_save(new, tmp_path / "new.onnx", None, None)
    before, after = onnx.load(path), onnx.load(tmp_path / "new.onnx")
    assert list(before.graph.node) == list(after.graph.node)
    old = {x.name: x for x in before.graph.initializer}
    changed = [x.name for x in after.graph.initializer if x != old[x.name]]
    assert sorted(changed) == ["conv1.bias", "fc2.bias"]
    assert torch.equal(opened(tmp_path / "new.onnx").tensors["fc2.bias"], torch.ones(10))
    assert torch.equal(graph.tensors["fc2.bias"], opened(path).tensors["fc2.bias"])


def test_only_networks_from_onnx_are_written(tmp_path: Path) -> None:
    graph = from_module(_mlp())
    with pytest.raises(SourceError, match=r"torch\.onnx\.export"):
        sane_onnx.sane_save(graph, tmp_path / "m.onnx", None, None)
    assert sane_onnx.sane_save(graph, tmp_path / "m.pt", None, None) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_told(sane_data: Path, tmp_path: Path) -> None:
    graph = opened(sane_data / "onnx" / "github_wild" / f"{LENET}.onnx")
    with pytest.raises(SourceError, match="cannot be written"):
        sane_onnx.sane_save(graph, tmp_path / "none" / "m.onnx", None, None)


# Small models made here.


def _model(nodes, initializers, path: Path, **options: object) -> Path:
    floats = {"elem_type": TensorProto.FLOAT, "shape": options.pop("shape", [1, 4])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", **floats)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    imports = [helper.make_opsetid("", options.pop("opset", 17))]
    onnx.save(helper.make_model(graph, opset_imports=imports, **options), path)
    return path


def _tensor(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT):
    count = int(np.prod(shape))
    return helper.make_tensor(name, kind, shape, (np.arange(count) / max(count, 1) - 0.3).tolist())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.BFLOAT16, torch.bfloat16),
        (TensorProto.FLOAT16, torch.float16),
        (TensorProto.DOUBLE, torch.float64),
        (TensorProto.FLOAT, torch.float32),
    ],
)
@pytest.mark.parametrize("is_raw", [False, True])
def test_every_float_type_returns_bit_for_bit(kind, dtype, is_raw: bool, tmp_path: Path) -> None:
    tensor = _tensor("w", (4, 3), kind)
    if is_raw:
        typed = opened(
            _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor], tmp_path / "t.onnx")
        ).tensors["w"]
        data = typed.view(torch.uint8).numpy().tobytes()
        tensor = helper.make_tensor("w", kind, (4, 3), data, raw=True)
    path = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor], tmp_path / "m.onnx")
    graph = opened(path)
    (param,) = graph.params
    assert (param.dtype, param.axis, graph.tensors["w"].dtype) == (dtype, 1, dtype)
    assert graph.tensors["w"][-1, -1].item() == pytest.approx(11 / 12 - 0.3, abs=0.01)
    back = detokenize(tokenize(graph, 2), _shifted(graph))
    sane_onnx.sane_save(back, tmp_path / "back.onnx", None, None)
    written = opened(tmp_path / "back.onnx").tensors["w"]
    assert torch.equal(written.view(torch.uint8), graph.tensors["w"].view(torch.uint8))


def test_output_axes_follow_the_operator(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "a", "ab"], ["1"]),
        helper.make_node("Gemm", ["1", "b"], ["2"], transB=1),
        helper.make_node("MatMul", ["2", "c"], ["3"]),
        helper.make_node("Add", ["cb", "3"], ["y"]),
    ]
    tensors = [
        _tensor("a", (4, 5)),
        _tensor("ab", (5,)),
        _tensor("b", (6, 5)),
        _tensor("c", (6, 3)),
    ]
    graph = opened(_model(nodes, [*tensors, _tensor("cb", (3,))], tmp_path / "m.onnx"))
    linear = [[p.key for p in x.params] for x in graph.layers if x.kind == "linear"]
    assert linear == [["a", "ab"], ["b"], ["c", "cb"]]
    assert {p.key: p.axis for p in graph.params} == {"a": 1, "ab": 0, "b": 0, "c": 1, "cb": 0}
    assert [g.size for g in permutation_groups(graph)] == [5, 6]


def test_a_reshape_that_is_no_flatten_stops_permutations(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["1"]),
        helper.make_node("Reshape", ["1", "to"], ["2"]),
        helper.make_node("MatMul", ["2", "w"], ["y"]),
    ]
    for features, count in ((18, 1), (9, 0)):
        shape = helper.make_tensor("to", TensorProto.INT64, (2,), [-1, features])
        tensors = [_tensor("k", (2, 1, 1, 1)), shape, _tensor("w", (features, 3))]
        path = _model(nodes, tensors, tmp_path / "m.onnx", shape=[1, 1, 3, 3])
        assert len(permutation_groups(opened(path))) == count


def test_numbers_that_are_no_weights_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["list"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Mul", ["x", "half"], ["1"]),
        helper.make_node("Clip", ["1", "low"], ["2"]),
        helper.make_node("Add", ["2", "list"], ["3"]),
        helper.make_node("Mul", ["3", "gate"], ["y"]),
    ]
    tensors = [_tensor("low", ()), _tensor("gate", ()), _tensor("alone", (3,))]
    path = _model(nodes, tensors, tmp_path / "m.onnx")
    graph = opened(path)
    assert [p.key for p in graph.params] == ["list", "gate", "alone"]
    assert graph.untouched == {"low": "a setting of Clip", "half": "a number in the computation"}
    sane_onnx.sane_save(_shifted(graph), tmp_path / "double.onnx", None, None)
    assert opened(tmp_path / "double.onnx").tensors["list"].tolist() == [2, 4, 6, 8]


def test_tensors_in_sub_graphs_are_read(sane_data: Path) -> None:
    graph = opened(sane_data / "onnx" / "onnxruntime_testdata" / "tiny_gpt2_beamsearch.onnx")
    assert graph.coverage == 1
    assert not graph.untouched
    assert {"attention", "linear", "norm"} <= {layer.kind for layer in graph.layers if layer.params}


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["1", "late"], ["y"]),
        helper.make_node("MatMul", ["x", "early"], ["1"]),
    ]
    tensors = [_tensor("late", (5, 3)), _tensor("early", (4, 5))]
    graph = opened(_model(nodes, tensors, tmp_path / "m.onnx"))
    assert [p.key for p in graph.params] == ["early", "late"]


# Files that cannot be read.


def test_every_real_file_gives_a_network_or_one_sentence(sane_data: Path) -> None:
    results = {}
    for path in sorted((sane_data / "onnx").rglob("*.onnx")):
        start = time.process_time()
        try:
            graph = opened(path)
            covered = {p.key for p in graph.params} | graph.untouched.keys()
            assert covered >= graph.tensors.keys(), path
            tokens = tokenize(graph, 128)
            assert int(tokens.mask.sum()) == graph.size
            results[path.name] = "read"
        except SaneError as error:
            assert "\n" not in str(error)
            results[path.name] = "refused"
        assert time.process_time() - start < 10
    assert list(results.values()).count("read") >= 40


def test_every_readable_file_returns_as_it_was(sane_data: Path, tmp_path: Path) -> None:
    for path in sorted((sane_data / "onnx").rglob("*.onnx")):
        try:
            graph = opened(path)
        except SourceError:
            continue
        target = tmp_path / path.name
        sane_onnx.sane_save(detokenize(tokenize(graph, 64), graph), target, None, None)
        before, after = sane_onnx_load(path), sane_onnx_load(target)
        if not (tmp_path / f"{path.name}.data").exists():
            assert before.SerializeToString(deterministic=True) == after.SerializeToString(
                deterministic=True
            ), path.name
        else:
            written = opened(target)
            assert all(torch.equal(t, written.tensors[p.key]) for p, t in graph.items())


def sane_onnx_load(path: Path):
    from sane_onnx.model_file.proto import load

    return load(path)


def _guessed(path: Path, size: int):
    """Run a model of unknown inputs on random numbers; None where onnxruntime cannot."""
    try:
        session, rng, feeds = _session(path), np.random.default_rng(0), {}
        for value in session.get_inputs():
            shape = [d if isinstance(d, int) and d > 0 else size for d in value.shape]
            kind = value.type[7:-1]
            if kind in ("float", "float16", "double"):
                dtype = {"float": np.float32, "float16": np.float16, "double": np.float64}[kind]
                feeds[value.name] = rng.normal(size=shape).astype(dtype)
            else:
                dtype = np.bool_ if kind == "bool" else np.dtype(kind)
                feeds[value.name] = rng.integers(0, 2, shape).astype(dtype)
        return [_numbers(answer) for answer in session.run(None, feeds)]
    except Exception:
        return None


@pytest.mark.slow
def test_every_readable_file_that_runs_computes_the_same(sane_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    ran, moved = [], []
    for path in sorted((sane_data / "onnx").rglob("*.onnx")):
        try:
            graph = opened(path)
        except SourceError:
            continue
        size = next((n for n in (1, 2, 16, 64) if _guessed(path, n) is not None), 0)
        before = _guessed(path, size) if size else None
        if before is None:
            continue
        ran.append(path.stem)
        groups = permutation_groups(graph)
        rng = torch.Generator().manual_seed(1)
        permuted = permute(graph, random_permutations(groups, rng))
        moved += [path.stem] * bool(groups)
        for name, network, tolerance in (("same", graph, 0), ("moved", permuted, 1e-4)):
            target = tmp_path / f"{path.stem}-{name}.onnx"
            sane_onnx.sane_save(network, target, None, None)
            after = _guessed(target, size)
            assert after is not None, path.name
            for one, other in zip(before, after, strict=True):
                if tolerance and one.size:
                    tolerance = 1e-4 * max(1, np.abs(np.nan_to_num(one)).max())
                assert np.allclose(one, other, atol=tolerance, rtol=0, equal_nan=True), target.name
            target.unlink()
    print(f"ran {len(ran)}: {ran}; permuted {len(moved)}: {moved}")
    assert len(ran) >= 30
    assert len(moved) >= 12


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_files_are_refused_with_a_reason(sane_data: Path, name: str) -> None:
    with pytest.raises(SourceError, match=REFUSED[name]):
        opened(sane_data / "onnx" / "onnxruntime_testdata" / f"{name}.onnx")


def test_broken_files_are_refused(sane_data: Path, tmp_path: Path) -> None:
    whole = (sane_data / "onnx" / "github_wild" / f"{LENET}.onnx").read_bytes()
    rng = np.random.default_rng(0)
    for i in range(150):
        data = bytearray(whole[: rng.integers(len(whole))] if i % 2 else whole)
        for place in rng.integers(min(len(data), 2000), size=i % 7) if data else ():
            data[place] = rng.integers(256)
        (tmp_path / "broken.onnx").write_bytes(data)
        try:
            tokenize(opened(tmp_path / "broken.onnx"), 64)
        except SaneError as error:
            assert "\n" not in str(error)
    with pytest.raises(SourceError, match="no usable ONNX model"):
        (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
        opened(tmp_path / "cut.onnx")


@pytest.mark.parametrize("text", ["this is a text, no model", "{}", "\n" * 50, "<html></html>"])
def test_text_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text(text)
    with pytest.raises(SourceError, match="no usable ONNX model"):
        opened(tmp_path / "text.onnx")


def test_missing_empty_and_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "folder.onnx").mkdir()
    for name, said in (("empty", "is empty"), ("folder", "is a folder"), ("none", "not exist")):
        with pytest.raises(SourceError, match=said):
            opened(tmp_path / f"{name}.onnx")


def test_a_shape_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    for shape in ([4, 10**9], [-4, -3], [4, 4]):
        tensor = _tensor("w", (4, 3))
        del tensor.dims[:]
        tensor.dims.extend(shape)
        path = _model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor], tmp_path / "m.onnx"
        )
        with pytest.raises(SourceError, match="the tensor is broken"):
            opened(path)


# What is not ours, or not installed.


@pytest.mark.parametrize("source", ["m.pt", "torchvision:resnet18", nn.Linear(1, 1), {}, None, 3])
def test_other_sources_are_left_to_others(source: object) -> None:
    assert sane_onnx.sane_open(source) is None


def test_importing_the_adapter_imports_no_onnx() -> None:
    check = "import sys, sane_onnx; sys.exit(bool({'torch', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_missing_onnx_is_told(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    monkeypatch.setattr("sane_onnx.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"pip install 'sane-plugins\[onnx\]'"):
        sane_onnx.sane_open(tmp_path / "m.onnx")
