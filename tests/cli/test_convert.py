"""`sane-plugins convert`: the same network in another form, bit for bit, or one sentence on why not."""

import json
import warnings
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from networks import HAND_MADE
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from sane_plugins import Host
from sane_plugins.cli.main import main
from sane_plugins.formats import read_metadata, save_sharded
from sane_plugins.weights import from_module

SUFFIXES = (".safetensors", ".pt", ".npz", ".safetensors.index.json")


def convert(source: object, output: Path, *more: object) -> Result:
    return CliRunner().invoke(main, ["convert", str(source), "-o", str(output), *map(str, more)])


def done(source: object, output: Path, *more: object) -> Path:
    result = convert(source, output, *more)
    assert result.exit_code == 0, result.output
    return output


def _checkpoint(network: Callable[[], nn.Module]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.manual_seed(0)
        torch.save(network().state_dict(), folder / "source.pt")
        return folder / "source.pt"

    return write


def _normed() -> nn.Module:
    layers = parametrizations.weight_norm(nn.Linear(5, 7)), nn.BatchNorm1d(7), nn.Linear(7, 2)
    return nn.Sequential(*layers)


def _shards(folder: Path) -> Path:
    graph = from_module(HAND_MADE["depthwise"]())
    return save_sharded(graph, folder / "source.safetensors.index.json", limit=300)


def _quantized(folder: Path) -> Path:
    scales, zeros = torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its quantised tensors deprecated
        weight = torch.quantize_per_channel(torch.randn(4, 3), scales, zeros, 0, torch.qint8)
    torch.save({"0.weight": weight, "0.bias": torch.randn(4)}, folder / "source.pt")
    return folder / "source.pt"


def _arrays(folder: Path) -> Path:
    np.savez(folder / "source.npz", weight=np.eye(3, dtype=np.float16), steps=np.int64(7))
    return folder / "source.npz"


SOURCES: Mapping[str, Callable[[Path], object]] = {
    "a name": lambda _: "small-cnn",
    "a checkpoint": _checkpoint(HAND_MADE["depthwise"]),
    "several files": _shards,
    "arrays": _arrays,
    "ties": _checkpoint(HAND_MADE["tied"]),
    "quantised": _quantized,
    "pruned": _checkpoint(HAND_MADE["pruned"]),
    "weight norm": _checkpoint(_normed),
    "spectral norm": _checkpoint(HAND_MADE["spectral"]),
    "half": _checkpoint(HAND_MADE["half"]),
    "float64": _checkpoint(HAND_MADE["double"]),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SOURCES)
def test_every_value_is_the_same(name: str, suffix: str, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    source, host = SOURCES[name](tmp_path), Host.installed()
    torch.manual_seed(0)  # a name builds anew
    graph = host.open(source)
    torch.manual_seed(0)
    again = host.open(done(source, tmp_path / "out" / f"net{suffix}"))
    wanted, got = graph.state_dict(), again.state_dict()
    assert got.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert got[key].dtype == tensor.dtype
        assert torch.equal(got[key], tensor), key
    assert again.ties == ({} if suffix == ".npz" else graph.ties)
    assert again.size == graph.size + (suffix == ".npz") * sum(
        graph.tensors[x].numel() for x in graph.ties
    )


@pytest.mark.parametrize("name", ["depthwise", "tied", "pruned"])
def test_the_output_loads_where_the_source_does(name: str, tmp_path) -> None:
    source = _checkpoint(HAND_MADE[name])(tmp_path)
    state = load_file(done(source, tmp_path / "net.safetensors"))
    wanted = torch.load(source, weights_only=True)
    HAND_MADE[name]().load_state_dict(state)
    assert all(torch.equal(state[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_output_tells_where_it_comes_from(suffix: str, tmp_path) -> None:
    source = _quantized(tmp_path)
    told = read_metadata(done(source, tmp_path / f"net{suffix}"))["conversion"]
    assert told["source"] == "source.pt"
    assert told["sha256"] == {"source.pt": sha256(source.read_bytes()).hexdigest()}
    assert told["coverage"] == 1
    assert "dequantised from qint8" in told["converted"]["0.weight"]
    assert str(tmp_path) not in json.dumps(told)


def test_what_the_source_told_of_itself_is_kept(tmp_path) -> None:
    host = Host.installed()
    graph = host.open(HAND_MADE["half"]())
    source = host.save(graph, tmp_path / "a.safetensors", metadata={"provenance": {"seed": 3}})
    told = read_metadata(done(source, tmp_path / "b.pt"))["conversion"]
    assert told["origin"] == {"provenance": {"seed": 3}}


def test_notes_and_json_tell_what_was_done(tmp_path) -> None:
    source = _quantized(tmp_path)
    result = convert(source, tmp_path / "net.npz", "--json", "--dtype", "float16")
    told = json.loads(result.stdout)
    assert told["output"] == str(tmp_path / "net.npz")
    assert (told["tensors"], told["values"], told["dtype"]) == (2, 16, "float16")
    assert any("'0.weight': dequantised from qint8" in text for text in told["notes"])
    assert any("2 tensor(s) are rounded to float16, by " in text for text in told["notes"])
    result = convert(source, tmp_path / "net.safetensors")
    assert "Note: '0.weight': dequantised from qint8" in result.stderr
    assert "2 tensors, 16 values" in result.stdout


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["a checkpoint", "weight norm", "pruned", "ties", "float64"])
def test_weights_alone_are_rounded(name: str, dtype: str, tmp_path) -> None:
    source, host, wanted = SOURCES[name](tmp_path), Host.installed(), getattr(torch, dtype)
    state = load_file(done(source, tmp_path / "net.safetensors", "--dtype", dtype))
    for key, tensor in torch.load(source, weights_only=True).items():
        assert torch.equal(state[key], tensor.to(wanted) if tensor.is_floating_point() else tensor)
    again = host.open(tmp_path / "net.safetensors")
    assert {param.dtype for param in again.params} == {wanted}


def test_rounding_never_overflows(tmp_path) -> None:
    torch.save({"weight": torch.full((2, 2), 1e5)}, tmp_path / "a.pt")
    for suffix in SUFFIXES:
        result = convert(tmp_path / "a.pt", tmp_path / f"b{suffix}", "--dtype", "float16")
        assert result.exit_code == 1
        assert "beyond float16" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    done(tmp_path / "a.pt", tmp_path / "b.pt", "--dtype", "bfloat16")


def _packed(folder: Path) -> Path:
    state = {"a": torch.ones(3, 3), "q": torch.ones(4, 4, dtype=torch.int8)}
    torch.save(state, folder / "a.pt")
    return folder / "a.pt"


def _six_bit_floats(folder: Path) -> Path:
    save_file({"a": torch.ones(3, 3)}, folder / "a.safetensors")
    data = (folder / "a.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header["six"] = {"dtype": "F6_E2M3", "shape": [5], "data_offsets": [36, 40]}
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + data[-36:] + bytes(4)
    (folder / "a.safetensors").write_bytes(whole)
    return folder / "a.safetensors"


@pytest.mark.parametrize(
    ("write", "said", "keys"),
    [
        (_packed, "'q': not understood, and written as stored", {"a", "q"}),
        (_six_bit_floats, "'six': not written", {"a"}),
    ],
)
def test_a_network_read_in_part_is_refused_unless_asked_for(
    write, said: str, keys: set[str], tmp_path
) -> None:
    source, output = write(tmp_path), tmp_path / "out.safetensors"
    refused = convert(source, output)
    assert refused.exit_code == 1
    assert "--partial" in refused.stderr
    assert not output.exists()
    result = convert(source, output, "--partial")
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    assert load_file(output).keys() == keys


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{source}", "-o", "{folder}/there.pt"], 2, "--force"),
        (["{source}", "-o", "{source}", "--force"], 2, ""),
        (["{source}", "-o", "{folder}/net.xyz"], 2, r"no plugin writes '.xyz' files"),
        (["{source}", "-o", "{folder}/net.jit"], 1, "holds a program"),
        (["{source}", "-o", "{folder}/none/net.pt"], 2, "folder does not exist"),
        (["{folder}/none.pt", "-o", "{folder}/net.pt"], 1, "does not exist"),
        (["{source}", "-o", "{folder}/net.pt", "--like", "a.onnx"], 2, "is no ONNX file"),
        (["{source}", "-o", "{folder}/a.onnx", "--dtype", "float16"], 2, "keeps its types"),
        (["{source}", "-o", "{folder}/net.npz", "--dtype", "bfloat16"], 1, "NumPy does not know"),
        (["{source}", "-o", "{folder}/net.pt", "--dtype", "int8"], 2, "is not one of"),
        (["{source}"], 2, "--output"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, code: int, said: str, tmp_path) -> None:
    source = _checkpoint(HAND_MADE["depthwise"])(tmp_path)
    (tmp_path / "there.pt").write_text("precious")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    filled = [x.format(source=source, folder=tmp_path) for x in arguments]
    result = CliRunner().invoke(main, ["convert", *filled])
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_in_the_way_is_replaced_when_asked_for(tmp_path) -> None:
    source, output = _checkpoint(HAND_MADE["depthwise"])(tmp_path), tmp_path / "there.pt"
    output.write_text("old")
    done(source, output, "--force")
    assert Host.installed().open(output).size


# ONNX


@pytest.fixture
def exported(tmp_path) -> Path:
    """Return an ONNX file that has a setting in floating point beside its weights."""
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    arrays = {
        "W": rng.normal(size=(4, 3)).astype(np.float32),
        "Q": rng.integers(-127, 128, (3, 5)).astype(np.int8),
        "scale": np.float32(0.02),
        "low": np.float32(0.5),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["X", "W"], ["a"]),
        onnx.helper.make_node("Clip", ["a", "low"], ["b"]),
        onnx.helper.make_node("DequantizeLinear", ["Q", "scale"], ["q"]),
        onnx.helper.make_node("MatMul", ["b", "q"], ["Y"]),
    ]
    told = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [told("X", onnx.TensorProto.FLOAT, [1, 4])],
        [told("Y", onnx.TensorProto.FLOAT, [1, 5])],
        [onnx.numpy_helper.from_array(np.asarray(x), key) for key, x in arrays.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "a.onnx"
    )
    return tmp_path / "a.onnx"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_into_plain_files_and_back_into_the_nodes(exported, suffix: str, tmp_path) -> None:
    import onnx

    host, plain = Host.installed(), done(exported, tmp_path / f"plain{suffix}")
    graph, again = host.open(exported), host.open(plain)
    assert {p.key for p in again.params} == {p.key for p in graph.params}
    for param, tensor in graph.items():
        assert torch.equal(again.tensors[param.key], tensor)
    for more in ((), ("--like", exported)):
        back = done(plain, tmp_path / f"back{len(more)}.onnx", *more)
        assert onnx.load(back) == onnx.load(exported)


def test_other_values_go_into_the_nodes(exported, tmp_path) -> None:
    host, graph = Host.installed(), Host.installed().open(exported)
    changed = graph.replace({"W": graph.tensors["W"] + 1}).state_dict()
    torch.save({p.key: changed[p.key].double() for p in graph.params}, tmp_path / "new.pt")
    back = host.open(done(tmp_path / "new.pt", tmp_path / "new.onnx", "--like", exported))
    assert all(torch.equal(back.tensors[p.key], changed[p.key]) for p in graph.params)


def test_an_onnx_file_of_another_network_is_refused(exported, tmp_path) -> None:
    plain = done(exported, tmp_path / "plain.safetensors")
    state = load_file(plain)
    for name, wrong, said in (
        ("less", {"W": state["W"]}, "'Q' is only in"),
        ("more", {**state, "Z": torch.ones(2)}, "'Z' is only in"),
        ("huge", {**state, "W": torch.full((4, 3), 1e300, dtype=torch.float64)}, "does not hold"),
        ("other", {**state, "W": torch.ones(2, 2)}, "(2, 2)"),
    ):
        save_file(wrong, tmp_path / f"{name}.safetensors")
        result = convert(
            tmp_path / f"{name}.safetensors", tmp_path / "new.onnx", "--like", exported
        )
        assert result.exit_code == 1
        assert said in result.stderr
        assert not (tmp_path / "new.onnx").exists()


def test_the_nodes_are_those_of_the_same_bytes(exported, tmp_path) -> None:
    plain = done(exported, tmp_path / "plain.safetensors")
    done(plain, tmp_path / "same.onnx")
    exported.write_bytes(exported.read_bytes()[:-1])
    result = convert(plain, tmp_path / "new.onnx")
    assert result.exit_code == 1
    assert "keep with --like" in result.stderr
