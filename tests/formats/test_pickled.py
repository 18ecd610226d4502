"""What lies in pickles: modules, training checkpoints, arrays. Their classes are never used."""

import argparse
import datetime
import functools
import pathlib
import pickle
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import HAND_MADE
from torch import nn

from sane_plugins.architectures import families
from sane_plugins.formats import open_file
from sane_plugins.weights import from_module, load_into, tokenize

BOTH_FORMS = pytest.mark.parametrize("new", [True, False], ids=["zip", "row"])


def save(content: object, path: Path, new: bool = True, protocol: int = 2) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    return path


def same(graph, state: dict[str, torch.Tensor]) -> None:
    """Assert that a graph holds exactly these tensors, in this order."""
    assert list(graph.state_dict()) == list(state)
    for key, tensor in state.items():
        assert graph.tensors[key].dtype == tensor.dtype
        assert torch.equal(graph.tensors[key], tensor), key


def notes(graph) -> str:
    return " | ".join(graph.notes)


class Detector(nn.Module):
    """As detection libraries keep theirs: attributes of all kinds beside the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.names, self.yaml, self.stride = {0: "cat"}, {"nc": 1}, torch.tensor([8.0])
        self.loss = functools.partial(print, "loss")


class Parts(nn.Module):
    """Shared layers, nested ones, and buffers that a state dict has or has not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gru = nn.Linear(3, 3), nn.GRU(3, 2)
        self.again = self.one
        self.list = nn.ModuleList([nn.Embedding(4, 3)])
        self.list[0].weight = nn.Parameter(self.one.weight[:0].new_ones(4, 3))
        self.scale = nn.ParameterDict({"a": nn.Parameter(torch.ones(2))})
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("passing", torch.zeros(3), persistent=False)
        self.register_parameter("none", None)


class Callback:
    def __init__(self) -> None:
        self.owner, self.wait = self, datetime.timedelta(1)


class Loud(dict):
    """A mapping that speaks when it is used."""

    def __setitem__(self, key: object, value: object) -> None:
        raise AssertionError("used")


# Modules as a whole


@BOTH_FORMS
@pytest.mark.parametrize("make", [families.resnet, Detector, Parts, lambda: nn.LSTM(3, 4)])
def test_a_whole_module_is_its_state_dict(make, new: bool, tmp_path, monkeypatch) -> None:
    module = make()
    path = save(module, tmp_path / "net.pt", new)
    monkeypatch.delattr(sys.modules[__name__], "Detector")  # the class is gone where the file goes
    graph = open_file(path)
    same(graph, module.state_dict())
    assert "its classes were not imported:" in notes(graph)
    here = tokenize(open_file(save(module.state_dict(), tmp_path / "state.pt")), 16)
    assert torch.equal(tokenize(graph, 16).values, here.values)


@pytest.mark.parametrize("name", ["tied", "pruned", "late pruned", "same memory"])
def test_whole_modules_are_read_as_their_state_dicts_are(name: str, tmp_path) -> None:
    module = HAND_MADE[name]()
    whole = open_file(save(module, tmp_path / "whole.pt"))
    state = open_file(save(module.state_dict(), tmp_path / "state.pt"))
    assert whole.ties == state.ties
    assert whole.untouched == state.untouched
    same(whole, state.state_dict())


@pytest.mark.parametrize("dump", [pickle.dump, functools.partial(pickle.dump, protocol=2)])
def test_what_pickle_itself_wrote_is_read(dump, tmp_path) -> None:
    module = Parts()
    with (tmp_path / "net.pkl").open("wb") as file:
        dump({"net": module, "epoch": 3}, file)
    graph = open_file(tmp_path / "net.pkl")
    same(graph, module.state_dict())
    assert graph.ties["again.weight"] == "one.weight"


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": -1, "best_fitness": np.float64(0.5), "model": Detector().half(), "ema": None},
        {"model": None, "ema": Detector().half(), "updates": 7, "date": "2026", "git": {}},
    ],
    ids=["model", "ema"],
)
def test_detectors_are_read_from_what_their_trainer_writes(content, tmp_path) -> None:
    graph = open_file(save(content, tmp_path / "best.pt"))
    module = content["model"] or content["ema"]
    same(graph, module.state_dict())
    assert graph.coverage == 1
    other = Detector().half()
    load_into(other, graph)
    assert torch.equal(other.model[0].weight, module.model[0].weight)


def test_graph_modules_and_averages_are_read(tmp_path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    traced = torch.fx.symbolic_trace(network)
    same(open_file(save(traced, tmp_path / "traced.pt")), network.state_dict())
    average = torch.optim.swa_utils.AveragedModel(network)
    graph = open_file(save(average, tmp_path / "average.pt"))
    assert [param.key for param in graph.params] == list(network.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_quantised_modules_lose_no_weight(tmp_path) -> None:
    network = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    graph = open_file(save(quantized, tmp_path / "net.pt"))
    assert graph.size + sum(graph.missed.values()) == 386
    weight = quantized[1].weight().dequantize()
    assert any(x.shape == weight.shape and torch.equal(x, weight) for _, x in graph.items())


# Checkpoints of trainers


def training(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return what training libraries write beside a state dict."""
    optimizer = torch.optim.Adam(nn.Linear(9, 9).parameters())
    return {
        "state_dict": state,
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": argparse.Namespace(lr=np.float32(0.1), path=pathlib.PurePosixPath("x")),
        "callbacks": {"stop": Callback(), "count": Counter("aab"), "best": torch.tensor([0.5, 1])},
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        "history": defaultdict(list, {"loss": [np.float64(1.0), 0.5]}),
        "optimizer_states": [optimizer.state_dict()],
        "numpy": np.random.RandomState(0).get_state(),
        "others": ({1, 2}, frozenset([3]), 1j, b"x", bytearray(b"y"), torch.float16, slice(1)),
        "torch": (torch.device("cpu"), torch.Size([2]), torch.sparse_coo, print, nn.Linear),
        "ids": {(0, 1): "a", 2.5: "b", None: "c"},
    }


@BOTH_FORMS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_training_checkpoints_are_read(new: bool, protocol: int, tmp_path) -> None:
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    graph = open_file(save(training(state), tmp_path / "last.ckpt", new, protocol))
    same(graph, state)
    assert graph.coverage == 1
    assert "argparse.Namespace" in notes(graph)
    assert "datetime.datetime" in notes(graph)
    assert "optimizer_states" in notes(graph)


def test_plain_checkpoints_name_no_classes(tmp_path) -> None:
    content = {"model": OrderedDict(nn.Linear(3, 2).state_dict()), "best": np.float64(0.9)}
    graph = open_file(save(content, tmp_path / "net.pt"))
    assert graph.size == 8
    assert "classes" not in notes(graph)


def test_mappings_of_any_class_are_mappings_and_are_not_used(tmp_path) -> None:
    state = nn.Linear(3, 2).state_dict()
    loud = Loud(state)
    named = argparse.Namespace(**{key.replace(".", "_"): x for key, x in state.items()})
    for content in (loud, [loud], {"net": loud}):
        same(open_file(save(content, tmp_path / "net.pt")), state)
    same(open_file(save(named, tmp_path / "net.pt")), state)


class Special(nn.Parameter):
    pass


class Plain(torch.Tensor):
    pass


@BOTH_FORMS
def test_tensors_of_any_class_are_tensors(new: bool, tmp_path) -> None:
    noted = nn.Parameter(torch.ones(2))
    noted.told = "something"
    content = {
        "special": Special(torch.ones(3)),
        "plain": torch.ones(4).as_subclass(Plain),
        "noted": noted,
        "view": torch.arange(12.0).reshape(3, 4).t()[1:, ::2],
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
    }
    graph = open_file(save(content, tmp_path / "net.pt", new))
    same(graph, {key: x.detach().as_subclass(torch.Tensor) for key, x in content.items()})


def test_what_has_no_values_or_is_nested_is_counted(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    content = {"a": torch.ones(2), "meta": torch.ones(4, device="meta"), "nested": nested}
    graph = open_file(save(content, tmp_path / "net.pt"))
    assert graph.missed == {"meta": 4, "nested": 5}
    assert "nested tensors" in graph.untouched["nested"]
    assert "meta" in graph.untouched["meta"]


@pytest.mark.parametrize("flag", ["conj", "neg"])
def test_what_is_still_to_be_computed_is(flag: str, tmp_path) -> None:
    values = torch.tensor([1 + 2j, 3 - 1j])
    lazy = values.conj() if flag == "conj" else values.conj().imag
    path = save({"lazy": lazy, "w": torch.ones(2)}, tmp_path / "net.pt")
    assert torch.equal(open_file(path).tensors["lazy"], lazy.resolve_conj().resolve_neg())


def test_a_checkpoint_of_the_other_byte_order_is_read(tmp_path) -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).half()}
    path = save(state, tmp_path / "net.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if "/data/" in info.filename:
                kind = ">f4" if len(data) == 24 else ">f2"
                data = np.frombuffer(data, kind.replace(">", "<")).astype(kind).tobytes()
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else data)
    same(open_file(tmp_path / "big.pt"), state)


# Arrays


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_are_tensors(protocol: int, tmp_path) -> None:
    arrays = {
        "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "half": np.ones((2, 0, 3), np.float16),
        "steps": np.array(3),
    }
    content = {"model": {**arrays, "names": np.array(["a"]), "odd": np.array([None])}}
    with (tmp_path / "net.pkl").open("wb") as file:
        pickle.dump(content, file, protocol=protocol)
    graph = open_file(tmp_path / "net.pkl")
    assert list(graph.tensors) == list(arrays)
    for key, array in arrays.items():
        assert np.array_equal(graph.tensors[key].numpy(), array)
        assert graph.tensors[key].numpy().dtype == array.dtype.newbyteorder("=")


# Whatever the suffix


@pytest.mark.parametrize("name", ["net.PTH", "net.model", "net", "net.safetensors", "net.npz"])
def test_content_decides(name: str, tmp_path) -> None:
    state = nn.Linear(3, 2).state_dict()
    graph = open_file(save(state, tmp_path / name))
    same(graph, state)
    assert ("read as a torch file" in notes(graph)) == (name != "net.PTH")


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".bin", "", ".SAFETENSORS"])
def test_safetensors_and_arrays_are_read_by_their_content_too(suffix: str, tmp_path) -> None:
    from safetensors.torch import save_file

    state = {"0.weight": torch.ones(2, 3)}
    path = tmp_path / f"net{suffix}"
    save_file(state, path)
    same(open_file(path), state)
    assert ("read as a safetensors file" in notes(open_file(path))) == (suffix != ".SAFETENSORS")
    np.savez(tmp_path / "other.npz", **{"0.weight": np.ones((2, 3), np.float32)})
    (tmp_path / "other.npz").rename(path)
    same(open_file(path), state)
    np.save(tmp_path / "one.npy", np.ones((2, 3), np.float32))
    (tmp_path / "one.npy").rename(path)
    assert open_file(path).size == 6


def test_files_of_other_content_are_left_to_others(tmp_path) -> None:
    for name, data in (("LICENSE", b"MIT"), ("net.model", b"\x08\x07"), ("x", b"\x80")):
        (tmp_path / name).write_bytes(data)
        assert open_file(tmp_path / name) is None
    assert open_file(tmp_path / "nothing") is None


def test_modules_and_their_files_are_one_network(tmp_path) -> None:
    module = families.small_cnn()
    graph = open_file(save(module, tmp_path / "net.pt"))
    assert torch.equal(tokenize(graph, 16).values, tokenize(from_module(module), 16).values)
