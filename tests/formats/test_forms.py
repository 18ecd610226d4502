"""Forms of files: sharded safetensors, nested checkpoints, TorchScript, NumPy."""

import json
import os
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import HAND_MADE
from safetensors.torch import load_file, save_file
from torch import nn

from sane_plugins import Host
from sane_plugins.errors import SourceError
from sane_plugins.formats import (
    dequantize,
    from_state_dict,
    limits,
    open_file,
    save_arrays,
    save_checkpoint,
    save_safetensors,
    save_sharded,
)
from sane_plugins.weights import detokenize, from_module, tokenize

INDEX = "model.safetensors.index.json"


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 5), nn.Linear(5, 2)]
    return nn.Sequential(*body).eval()


def same(graph, state: dict[str, torch.Tensor]) -> None:
    """Assert that a graph holds exactly these tensors, bit for bit."""
    assert sorted(graph.state_dict()) == sorted(state)
    for key, tensor in state.items():
        assert graph.tensors[key].dtype == tensor.dtype
        assert torch.equal(graph.tensors[key], tensor), key


# Several files


@pytest.fixture
def sharded(tmp_path) -> Path:
    """Return the index of a network in several files."""
    return save_sharded(from_module(network()), tmp_path / INDEX, limit=500)


@pytest.mark.parametrize("name", HAND_MADE)
def test_shards_are_written_and_read_back(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    graph = from_module(HAND_MADE[name]())
    path = save_sharded(graph, tmp_path / INDEX, limit=300)
    shards = sorted(tmp_path.glob("*.safetensors"))
    largest = max(tensor.nbytes for tensor in graph.state_dict().values())
    assert all(sum(x.nbytes for x in load_file(s).values()) <= max(300, largest) for s in shards)
    assert len([*tmp_path.iterdir()]) == len(shards) + 1
    for source in (path, tmp_path, str(tmp_path)):
        again = open_file(source)
        here, there = tokenize(graph, 16), tokenize(again, 16)
        assert torch.equal(here.values, there.values)
        assert torch.equal(here.positions, there.positions)
        assert again.ties == graph.ties
        same(again, graph.state_dict())


def test_the_host_writes_several_files(tmp_path) -> None:
    host = Host.installed()
    path = host.save(host.open(network()), tmp_path / INDEX)
    assert json.loads(path.read_text())["metadata"]["total_size"] > 0
    same(host.open(tmp_path), network().state_dict())


def test_one_of_several_files_is_read_alone(sharded) -> None:
    shard = sorted(sharded.parent.glob("*.safetensors"))[0]
    same(open_file(shard), load_file(shard))


def test_shards_of_others_come_in_the_order_of_their_names(tmp_path) -> None:
    parts = {
        "a": {"10.weight": torch.ones(2, 2)},
        "b": {"2.weight": torch.ones(2, 2), "head": torch.ones(1)},
    }
    for name, state in parts.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    where = {key: f"{name}.safetensors" for name, state in parts.items() for key in state}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": None, "weight_map": where}))
    assert [layer.name for layer in open_file(tmp_path).layers] == ["2", "10", "head"]
    del where["head"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    assert any(
        "1 tensors are in its files though not in the index" in n for n in open_file(tmp_path).notes
    )


def test_shards_can_be_written_over_while_they_are_read(sharded) -> None:
    graph = open_file(sharded)
    save_sharded(graph.replace({"0.bias": torch.zeros(3)}), sharded, limit=500)
    assert graph.tensors["0.bias"].any()
    same(open_file(sharded), network().state_dict() | {"0.bias": torch.zeros(3)})


def change(index: Path, kind: str) -> None:
    told = json.loads(index.read_text())
    where = told["weight_map"]
    first = index.parent / where["0.weight"]
    names = {
        "parent": "../x.safetensors",
        "absolute": "/etc/passwd",
        "windows": "..\\x",
        "nothing": "",
        "here": ".",
        "number": 3,
        "inside": f"sub/{first.name}",
    }
    if kind in names:
        where["0.weight"] = names[kind]
    elif kind == "missing":
        first.unlink()
    elif kind == "lost":
        where["4.bias"] = where["0.weight"]
    elif kind == "twice":
        save_file(load_file(first), index.parent / "again.safetensors")
        where["0.bias"] = "again.safetensors"
    elif kind == "link":
        other = index.parent.parent / "elsewhere.safetensors"
        first.rename(other)
        first.symlink_to(other)
    elif kind == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif kind == "map":
        told["weight_map"] = ["a"]
    index.write_text(json.dumps(told))
    if kind == "named twice":
        index.write_text(index.read_text().replace('"0.bias"', '"0.weight"'))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("parent", "plain names"),
        ("absolute", "plain names"),
        ("windows", "plain names"),
        ("nothing", "plain names"),
        ("here", "plain names"),
        ("inside", "plain names"),
        ("number", "no index"),
        ("map", "no index"),
        ("named twice", "no index"),
        ("missing", "it does not exist"),
        ("lost", "'4.bias' is not in"),
        ("twice", "is in two files"),
        ("link", "leads out of its folder"),
        ("cut", "no whole safetensors"),
    ],
)
def test_odd_shards_are_one_sentence(kind: str, said: str, tmp_path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    index = save_sharded(from_module(network()), folder / INDEX, limit=500)
    change(index, kind)
    with pytest.raises(SourceError, match=said) as caught:
        open_file(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("blobs", ["blobs", "other"])
def test_the_cache_of_hugging_face_is_read(blobs: str, tmp_path) -> None:
    snapshot, kept = (
        tmp_path / "models--x" / "snapshots" / "abc" / "text",
        tmp_path / "models--x" / blobs,
    )
    snapshot.mkdir(parents=True)
    kept.mkdir()
    save_sharded(from_module(network()), snapshot / INDEX, limit=500)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(kept / str(number))
        path.symlink_to(os.path.relpath(kept / str(number), snapshot))
    if blobs == "blobs":
        same(open_file(snapshot), network().state_dict())
    else:
        with pytest.raises(SourceError, match="leads out of its folder"):
            open_file(snapshot)


def test_folders_that_are_no_network(tmp_path, sharded) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert open_file(empty) is None
    (sharded.parent / "other.safetensors.index.json").write_text("{}")
    sharded.rename(sharded.with_name("one.safetensors.index.json"))  # no name of Hugging Face's
    with pytest.raises(SourceError, match="several networks"):
        open_file(sharded.parent)
    with pytest.raises(SourceError, match="it does not exist"):
        open_file(tmp_path / "pytorch_model.bin.index.json")


# Safetensors headers


def write_header(path: Path, entries: dict[str, tuple[str, list[int], int]]) -> Path:
    """Write a file whose values are a hole on disk: name -> type, shape, bytes."""
    header, end = {}, 0
    for key, (kind, shape, size) in entries.items():
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    told = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        file.truncate(8 + len(told) + end)
    return path


def test_a_large_file_opens_at_once(tmp_path) -> None:
    shape = [5_000, 20_000]
    entries = {f"{i}.weight": ("F32", shape, 4 * 10**8) for i in range(10)}
    path = write_header(tmp_path / "net.safetensors", entries)
    start = time.process_time()  # which other programs do not stretch
    graph = open_file(path)
    assert graph.size == 10**9
    assert time.process_time() - start < 1
    assert graph.tensors.describe("3.weight") == ((5_000, 20_000), torch.float32)


def test_too_many_tensors_are_refused(tmp_path, sharded, monkeypatch) -> None:
    monkeypatch.setattr(limits, "TENSORS", 3)
    entries = {f"{i}.weight": ("F32", [1], 4) for i in range(4)}
    for path in (write_header(tmp_path / "net.safetensors", entries), sharded):
        with pytest.raises(SourceError, match="tensors, but at most 3 are read"):
            open_file(path)


def test_types_that_torch_lacks_are_missed_and_not_lost(tmp_path) -> None:
    entries = {
        "a.weight": ("F8_E4M3", [4, 4], 16),
        "a.table": ("F8_E8M0", [4], 4),
        "b.weight": ("F6_E3M2", [4, 4], 12),
        "c.weight": ("F6_E2M3", [4, 4], 12),
        "d.weight": ("NEW", [3], 7),
        "e.steps": ("I64", [], 8),
    }
    graph = open_file(write_header(tmp_path / "net.safetensors", entries))
    assert [param.key for param in graph.params] == ["a.weight", "a.table"]
    assert graph.missed == {"b.weight": 16, "c.weight": 16, "d.weight": 3}
    assert graph.coverage == 20 / 55
    assert graph.untouched["b.weight"] == "F6_E3M2 values cannot be read"
    for write in (save_safetensors, save_checkpoint, save_sharded, save_arrays):
        with pytest.raises(SourceError, match=r"'b.weight' of .* could not be read"):
            write(graph, tmp_path / "other.safetensors")


def test_integers_that_may_be_weights_are_missed(tmp_path) -> None:
    state = {
        "a.weight": torch.ones(4, 8, dtype=torch.int8),
        "a.other": torch.ones(4),
        "steps": torch.tensor(3),
        "b.packed": torch.ones(2, 8, dtype=torch.int32),
        "flags": torch.ones(9, dtype=torch.uint8),
    }
    save_file(state, tmp_path / "net.safetensors")
    graph = open_file(tmp_path / "net.safetensors")
    assert graph.missed == {"a.weight": 32, "b.packed": 128}
    doubt = "may be quantised weights; their scales are not known to this reader"
    assert {key for key, why in graph.untouched.items() if doubt in why} == graph.missed.keys()
    assert graph.coverage == pytest.approx(4 / 164)
    same(open_file(save_safetensors(graph, tmp_path / "again.safetensors")), state)


# Checkpoints


STATE = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
SMALL = {"weight": torch.zeros(1, 3)}


@pytest.mark.parametrize(
    ("content", "keys", "note"),
    [
        ([STATE, SMALL], ["weight", "bias"], "read from '0'"),
        ({"models": [SMALL, STATE]}, ["weight", "bias"], "read from 'models.1'"),
        ({"models": (OrderedDict(STATE), 3)}, ["weight", "bias"], "read from 'models.0'"),
        ([torch.ones(2), torch.ones(3)], ["0", "1"], ""),
        ({"params": [torch.ones(2), torch.ones(3)]}, ["0", "1"], "read from 'params'"),
        (torch.ones(2, 3), ["0"], ""),
        (nn.Parameter(torch.ones(2, 3)), ["0"], ""),
        ({0: torch.ones(2), 1: torch.ones(3)}, ["0", "1"], ""),
        (
            {"state_dict": {**STATE, "epoch": 3, "name": "x", "none": None}},
            ["weight", "bias"],
            "state_dict",
        ),
        ({"model": SMALL, "model_ema": STATE}, ["weight", "bias"], "not read: 'model'"),
        (
            {"net": STATE, "optimizer": {"x": torch.ones(99)}},
            ["weight", "bias"],
            "optimiser is left out",
        ),
        (
            {
                "net": STATE,
                "optimizer_states": [{"state": {0: {"x": torch.ones(9)}}, "param_groups": []}],
            },
            ["weight", "bias"],
            "optimiser is left out: optimizer_states",
        ),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_what_checkpoints_nest(content, keys, note: str, new: bool, tmp_path) -> None:
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=new)
    graph = open_file(tmp_path / "net.pt")
    assert [param.key for param in graph.params] == keys
    assert note in " ".join(graph.notes)
    assert graph.coverage == (8 / 11 if "not read" in " ".join(graph.notes) else 1)


@pytest.fixture
def quantized() -> dict[str, torch.Tensor]:
    """Return quantised tensors of each kind."""
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    scales, zeros = torch.tensor([0.1, 0.2, 0.05, 0.3]), torch.zeros(4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "tensor": torch.quantize_per_tensor(values, 0.1, 3, torch.qint8),
            "unsigned": torch.quantize_per_tensor(values, 0.1, 100, torch.quint8),
            "channel": torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8),
            "four bits": torch.quantize_per_channel(
                values, scales, zeros.float(), 0, torch.quint4x2
            ),
        }


@pytest.mark.parametrize("new", [True, False])
def test_quantised_tensors_are_dequantised(quantized, new: bool, tmp_path) -> None:
    wanted = {key: tensor.dequantize() for key, tensor in quantized.items()}
    packed = {"fc.packed": (quantized["channel"], nn.Parameter(torch.ones(4)))}
    torch.save({**quantized, **packed}, tmp_path / "net.pt", _use_new_zipfile_serialization=new)
    graph = open_file(tmp_path / "net.pt")
    assert graph.converted["channel"] == "dequantised from qint8, one scale per channel"
    assert graph.converted["unsigned"] == "dequantised from quint8, one scale"
    wanted |= {"fc.packed.0": wanted["channel"], "fc.packed.1": torch.ones(4)}
    same(graph, wanted)
    assert any("written as such" in note for note in graph.notes)
    same(open_file(save_checkpoint(graph, tmp_path / "again.pt")), wanted)
    same(from_state_dict(quantized, "state"), {key: wanted[key] for key in quantized})


def test_scales_that_do_not_fit_are_said() -> None:
    scales, zeros = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = torch._empty_per_channel_affine_quantized(
            (4, 6), scales=scales, zero_points=zeros, axis=0, dtype=torch.qint8
        )
    graph = from_state_dict({"a": bad, "c": torch.ones(2)}, "state")
    assert graph.missed == {"a": 24}
    assert "do not fit" in graph.untouched["a"]


def test_zero_points_out_of_range_are_one_sentence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = torch._empty_affine_quantized((3,), scale=0.1, zero_point=300, dtype=torch.qint8)
    with pytest.raises(SourceError, match="state, 'a': it is broken"):
        from_state_dict({"a": bad}, "state").state_dict()


def test_sparse_tensors_are_made_dense_up_to_a_limit(tmp_path, monkeypatch) -> None:
    dense = torch.eye(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"a": dense.to_sparse(), "b": dense.to_sparse_csr(), "c": torch.ones(2)}
    torch.save(state, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert graph.converted == dict.fromkeys("ab", "stored sparse, read dense")
    same(graph, {"a": dense, "b": dense, "c": torch.ones(2)})
    monkeypatch.setattr(dequantize, "DENSE", 100)
    graph = open_file(tmp_path / "net.pt")
    assert graph.missed == {"b": 16}
    assert "too many" in graph.untouched["b"]
    places = torch.zeros(2, 1, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        huge = torch.sparse_coo_tensor(places, torch.ones(1), (2**20, 2**20))
    torch.save({"a": huge, "c": torch.ones(2)}, tmp_path / "net.pt")
    assert open_file(tmp_path / "net.pt").missed == {"a": 2**40}


def test_complex_and_empty_forms_are_missed(tmp_path) -> None:
    state = {
        "f": torch.ones(3, dtype=torch.complex64),
        "m": torch.ones(4, device="meta"),
        "w": torch.ones(2),
    }
    torch.save(state, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert graph.missed == {"f": 3, "m": 4}
    assert "complex64" in graph.untouched["f"]
    assert "meta" in graph.untouched["m"]


def test_a_folded_mask_is_said(tmp_path) -> None:
    torch.save(HAND_MADE["pruned"]().state_dict(), tmp_path / "net.pt")
    assert open_file(tmp_path / "net.pt").converted["0.weight"] == "its pruning mask is folded in"


def test_packed_checkpoints_are_read_right(tmp_path) -> None:
    import zipfile

    torch.save(network().state_dict(), tmp_path / "net.pt")
    with (
        zipfile.ZipFile(tmp_path / "net.pt") as old,
        zipfile.ZipFile(tmp_path / "packed.pt", "w") as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    same(open_file(tmp_path / "packed.pt"), network().state_dict())


# TorchScript


def script(module: nn.Module, path: Path, *example: torch.Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module, example) if example else torch.jit.script(module)
        torch.jit.save(made, path)
    return path


def loaded(path: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path).state_dict()


@pytest.mark.parametrize("suffix", [".pt", ".jit", ".torchscript"])
@pytest.mark.parametrize("traced", [True, False])
def test_scripts_hold_what_torch_finds_in_them(traced: bool, suffix: str, tmp_path) -> None:
    example = (torch.randn(2, 2, 5, 5),) if traced else ()
    path = script(network(), tmp_path / f"net{suffix}", *example)
    graph, wanted = open_file(path), loaded(path)
    assert graph.container == "torchscript"
    same(graph, wanted)
    assert torch.equal(
        tokenize(graph, 16).values, tokenize(from_state_dict(wanted, "state"), 16).values
    )
    back = detokenize(tokenize(graph, 16), graph)
    same(open_file(save_safetensors(back, tmp_path / "back.safetensors")), wanted)
    with pytest.raises(SourceError, match=r"holds a program.*\.safetensors or \.pt"):
        Host.installed().save(graph, tmp_path / "other.jit")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.small = nn.Linear(4, 4), nn.Linear(4, 4).half()
        self.other = self.one
        self.parts = nn.ModuleList([nn.LSTM(4, 3), nn.Embedding(5, 4)])
        self.tables = [torch.ones(2), torch.zeros(3)]

    def forward(self, x):
        return self.other(self.one(x)) + torch.arange(4) * torch.tensor([0.5, 1.5, 2.5, 3.5])


def test_shared_modules_lists_and_constants_of_scripts(tmp_path) -> None:
    path = script(Tied(), tmp_path / "net.jit", torch.ones(2, 4))
    graph, wanted = open_file(path), loaded(path)
    constants = [key for key in graph.tensors if key.startswith("constants.")]
    assert any(graph.tensors[key].tolist() == [0.5, 1.5, 2.5, 3.5] for key in constants)
    for key, tensor in wanted.items():
        assert torch.equal(graph.tensors[key], tensor)
        assert graph.tensors[key].dtype == tensor.dtype
    if "other.weight" in wanted:
        assert graph.ties["other.weight"] == "one.weight"
    assert {graph.ties.get(key, key) for key in wanted} <= {param.key for param in graph.params}


class Quantized(nn.Module):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for key, tensor in tensors.items():
            self.register_buffer(key, tensor)

    def forward(self, x):
        return x


def test_quantised_scripts_are_dequantised(quantized, tmp_path) -> None:
    del quantized["four bits"]  # torch cannot write it
    path = script(Quantized({**quantized, "bias": torch.ones(3)}), tmp_path / "net.jit")
    graph = open_file(path)
    same(graph, {key: x.dequantize() for key, x in quantized.items()} | {"bias": torch.ones(3)})
    assert graph.converted["channel"] == "dequantised from qint8, one scale per channel"


# NumPy


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_one_at_a_time(save, tmp_path) -> None:
    arrays = {
        "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "0.bias": np.ones(2, np.float16),
        "1.weight": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "steps": np.array(3),
        "2.weight": np.arange(6, dtype=">f4").reshape(2, 3),
        "empty": np.ones((0, 3)),
    }
    save(tmp_path / "net.npz", **arrays)
    graph = open_file(tmp_path / "net.npz")
    assert list(graph.tensors) == list(arrays)
    assert "int64" in graph.untouched["steps"]
    for key, array in arrays.items():
        assert np.array_equal(graph.tensors[key].numpy(), array)
        assert graph.tensors[key].numpy().dtype == array.dtype.newbyteorder("=")
    again = open_file(save_arrays(graph, tmp_path / "again.npz"))
    same(again, graph.state_dict())
    assert (
        save_arrays(graph, tmp_path / "b.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    )
    with np.load(tmp_path / "again.npz") as file:
        assert sorted(file.files) == sorted(arrays)


def test_one_array_is_a_network_too(tmp_path) -> None:
    np.save(tmp_path / "net.npy", np.arange(6.0).reshape(2, 3))
    same(open_file(tmp_path / "net.npy"), {"0": torch.arange(6, dtype=torch.float64).reshape(2, 3)})


def test_arrays_that_are_no_numbers_are_named(tmp_path) -> None:
    raw = np.zeros((2, 3), np.uint16).view("V2")
    np.savez(
        tmp_path / "net.npz",
        w=np.ones(3),
        raw=raw,
        names=np.array(["a"]),
        when=np.array(["2026"], "M8"),
    )
    graph = open_file(tmp_path / "net.npz")
    assert graph.missed == {"raw": 6}
    assert "bfloat16" in graph.untouched["raw"]
    assert {"names", "when"} <= graph.untouched.keys()


@pytest.mark.parametrize("name", HAND_MADE)
def test_networks_survive_npz(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    graph = from_module(HAND_MADE[name]())
    state = graph.state_dict()
    path = tmp_path / "net.npz"
    if any(x.dtype in (torch.bfloat16, torch.float8_e4m3fn) for x in state.values()):
        with pytest.raises(SourceError, match="NumPy does not know it"):
            save_arrays(graph, path)
        assert not list(tmp_path.iterdir())
        return
    same(open_file(Host.installed().save(graph, path)), state)


def test_types_that_numpy_lacks_are_one_sentence(tmp_path) -> None:
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        graph = from_state_dict({"w": torch.ones(3).to(dtype)}, "state")
        with pytest.raises(SourceError, match="NumPy does not know it"):
            save_arrays(graph, tmp_path / "net.npz")
