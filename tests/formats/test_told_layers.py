"""Layers that names do not tell are in the metadata of a safetensors file, and believed where they fit."""

import json

import pytest
import torch
from networks import HAND_MADE
from safetensors.torch import save_file

from sane_plugins import Host
from sane_plugins.formats import open_file, save_safetensors, save_sharded
from sane_plugins.testing import example_graphs
from sane_plugins.weights import Layer, Param, WeightGraph, find_fault, from_module


def _columns() -> WeightGraph:
    """Return a perceptron as JAX stores it: NAME/kernel (inputs, outputs) and NAME/bias."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"b/kernel": (6, 5), "b/bias": (5,), "a/kernel": (5, 3), "a/bias": (3,)}
    tensors = {key: torch.randn(*shape, generator=draw) for key, shape in shapes.items()}

    def layer(name: str, before: str) -> Layer:
        params = [
            Param(key=f"{name}/{x}", role=role, shape=shapes[f"{name}/{x}"], dtype=torch.float32, axis=axis)
            for x, role, axis in (("kernel", "weight", 1), ("bias", "bias", 0))
        ]  # fmt: skip
        return Layer(name=name, kind="linear", params=tuple(params), inputs=(before,))

    layers = (
        Layer(name="in", kind="input"),
        layer("b", "in"),
        Layer(name="relu", kind="pointwise", inputs=("b",)),
        layer("a", "relu"),
        Layer(name="out", kind="output", inputs=("a",)),
    )
    return WeightGraph(source="columns", layers=layers, tensors=tensors, container="columns")


@pytest.mark.parametrize("name", ["net.safetensors", "net.safetensors.index.json"])
def test_layers_of_another_convention_are_kept(tmp_path, name: str) -> None:
    graph, host = _columns(), Host.installed()
    opened = host.open(host.save(graph, tmp_path / name))
    assert opened.layers == graph.layers
    assert not any("topology" in note for note in opened.notes)
    assert host.encode(opened).embedding.equal(host.encode(graph).embedding)
    again = host.open(host.save(opened, tmp_path / f"again-{name}"))
    assert again.layers == graph.layers


@pytest.mark.parametrize("name", HAND_MADE)
def test_names_that_tell_their_layers_are_written_as_ever(tmp_path, name: str) -> None:
    graph = from_module(HAND_MADE[name]())
    assert find_fault(graph) is None
    opened = open_file(save_safetensors(graph, tmp_path / "net.safetensors"))
    assert find_fault(opened) is None
    with (tmp_path / "net.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    told = json.loads(header["__metadata__"]["sane"]).get("layers")
    assert told is None or {x["kind"] for x in told} - {"parameter", "unknown"}


@pytest.mark.parametrize(
    "layers",
    [[], [3], [{}], [{"name": "b"}], "twice", "dense", "short", "loop", "axis", "list"],
)
def test_layers_that_do_not_fit_are_not_believed(tmp_path, layers: object) -> None:
    """A file's metadata are a stranger's; names and shapes say the layers then, and a note says so."""
    graph, path = _columns(), tmp_path / "net.safetensors"
    save_safetensors(graph, path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    entry = json.loads(header["__metadata__"]["sane"])
    told = entry["layers"]
    changes = {
        "twice": lambda: told.append(told[1]),
        "dense": lambda: told[1].update(kind="dense"),
        "short": lambda: told.pop(1),
        "loop": lambda: told[1].update(inputs=["b"]),
        "axis": lambda: told[1]["params"][0].__setitem__(2, 7),
        "list": lambda: told[1].update(name=["b"]),
    }
    if isinstance(layers, str):
        changes[layers]()
        layers = told
    save_file(dict(graph.tensors), path, metadata={"sane": json.dumps({**entry, "layers": layers})})
    opened = open_file(path)
    assert any("layers in its metadata do not fit" in note for note in opened.notes)
    assert find_fault(opened) is None
    assert {x.key for x in opened.params} == {x.key for x in graph.params}


def test_many_layers_are_left_out_not_unreadable(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sane_plugins.formats.safetensors_files.told_layers._MAX_TEXT", 100)
    opened = open_file(save_safetensors(_columns(), tmp_path / "net.safetensors"))
    assert not opened.has_topology


def test_values_may_be_exchanged(tmp_path) -> None:
    graph = _columns()
    changed = graph.replace({"a/bias": torch.zeros(3)})
    opened = open_file(save_sharded(changed, tmp_path / "n.safetensors.index.json", limit=64))
    assert opened.layers == graph.layers
    assert not opened.tensors["a/bias"].any()


@pytest.mark.parametrize("i", range(6))
@pytest.mark.parametrize("name", ["net.safetensors", "net.safetensors.index.json"])
def test_what_was_read_is_written_as_it_was(tmp_path, i: int, name: str) -> None:
    """The order of the network is kept too: by name, layer 11 comes before layer 4."""
    host, (one, other) = Host.installed(), (tmp_path / "one", tmp_path / "other")
    for folder in (one, other):
        folder.mkdir()
    graph = example_graphs()[i]
    opened = host.open(host.save(graph, one / name))
    assert [*opened.tensors] == [*graph.state_dict()]
    host.save(opened, other / name)
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()
