"""Names as the plain module's: without wrappers of modules, with the aliases that a file leaves out."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from sane_plugins.formats import from_state_dict, open_file, save_checkpoint, save_safetensors
from sane_plugins.weights import from_module, load_into, strip_wrapper_prefixes, tokenize

State = dict[str, torch.Tensor]


class Net(nn.Module):
    """A network in which a layer, a norm and the first part of a name repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))


def state() -> State:
    torch.manual_seed(0)
    return Net().state_dict()


def write_index(tensors: State, path: Path) -> Path:
    import json

    keys = list(tensors)
    where = {}
    for number, part in enumerate((keys[:4], keys[4:])):
        name = f"part-{number}.safetensors"
        save_file({key: tensors[key] for key in part}, path.parent / name)
        where |= dict.fromkeys(part, name)
    path.write_text(json.dumps({"weight_map": where}))
    return path


CONTAINERS: dict[str, Callable[[State, Path], object]] = {
    "net.pt": torch.save,
    "old.pt": lambda x, path: torch.save(x, path, _use_new_zipfile_serialization=False),
    "nested.ckpt": lambda x, path: torch.save({"state_dict": x, "epoch": 1}, path),
    "net.safetensors": save_file,
    "net.safetensors.index.json": write_index,
    "net.npz": lambda x, path: np.savez(path, **{key: t.numpy() for key, t in x.items()}),
}
BEFORE = ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]
CHAINS = [*BEFORE, *("".join(pair) for pair in itertools.permutations(BEFORE, 2))]
CHAINS += ["module.module.", "module._orig_mod.module.", "_orig_mod._fsdp_wrapped_module.module."]


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("chain", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_removed_in_every_form(name: str, chain: str, tmp_path) -> None:
    plain = state()
    CONTAINERS[name]({chain + key: x for key, x in plain.items()}, tmp_path / name)
    graph = open_file(tmp_path / name)
    assert sorted(graph.state_dict()) == sorted(plain)
    assert all(torch.equal(graph.tensors[key], x) for key, x in plain.items())
    assert any("names are the plain module's" in note for note in graph.notes)
    load_into(Net(), graph)
    again = open_file(save_safetensors(graph, tmp_path / "again.safetensors"))
    assert sorted(again.state_dict()) == sorted(plain)
    assert not any("names are the plain module's" in note for note in again.notes)


@pytest.mark.parametrize("chain", CHAINS)
def test_wrappers_are_removed_in_any_order(chain: str) -> None:
    plain = state()
    graph = from_state_dict({chain + key: x for key, x in plain.items()}, "state")
    assert list(graph.state_dict()) == list(plain)
    assert torch.equal(tokenize(graph, 8).values, tokenize(from_state_dict(plain, "s"), 8).values)


@pytest.mark.parametrize("wrapper", BEFORE[1:])
def test_wrappers_inside_a_network_are_removed(wrapper: str) -> None:
    plain = state()
    wrapped = {key.replace("layers.0.", f"layers.0.{wrapper}"): x for key, x in plain.items()}
    assert list(from_state_dict(wrapped, "state").state_dict()) == list(plain)
    fully = {f"module.{key.replace('stem.', f'{wrapper}stem.')}": x for key, x in plain.items()}
    assert list(from_state_dict(fully, "state").state_dict()) == list(plain)


@pytest.mark.parametrize("compiled", [False, True])
def test_averages_are_read_as_what_they_average(compiled: bool, tmp_path) -> None:
    network = Net()
    average = torch.optim.swa_utils.AveragedModel(network)
    stored = average.state_dict()
    if compiled:
        stored = {key.replace("module.", "module._orig_mod."): x for key, x in stored.items()}
    torch.save(stored, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert [p.key for p in graph.params] == [p.key for p in from_module(network).params]
    assert any("AveragedModel" in note for note in graph.notes)
    load_into(Net(), graph)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        torch.optim.swa_utils.AveragedModel,
        lambda net: nn.DataParallel(torch.compile(net)),
    ],
)
def test_wrapped_modules_are_loaded_from_what_they_wrote(wrap, tmp_path) -> None:
    torch.manual_seed(0)
    one, other = wrap(Net()), wrap(Net())
    torch.save(one.state_dict(), tmp_path / "net.pt")
    for source in (open_file(tmp_path / "net.pt"), from_module(one)):
        for target in (wrap(Net()), other):
            load_into(target, source)
            for key, tensor in one.state_dict().items():
                assert torch.equal(target.state_dict()[key], tensor)


@pytest.mark.parametrize(
    "keys",
    [
        ["module.a.weight", "b.weight"],  # a module of that name beside others
        ["a.module.weight", "b.module.weight"],  # and inside
        ["module.a.weight", "n_averaged.weight"],
        ["modules.a.weight", "modules.b.weight"],
        ["_orig_mod.a.weight", "a.weight"],  # the plain name is taken
        ["module", "_orig_mod"],
        ["n_averaged"],
        [],
    ],
)
def test_names_that_are_the_networks_own_stay(keys: list[str]) -> None:
    assert strip_wrapper_prefixes(keys).plain == {}


def test_a_collision_keeps_one_wrapper_and_removes_the_other() -> None:
    names = strip_wrapper_prefixes(["module._orig_mod.a", "module.a"])
    assert names.plain == {"module._orig_mod.a": "_orig_mod.a", "module.a": "a"}


def test_many_wrappers_end() -> None:
    deep = "module." * 400 + "weight"
    assert strip_wrapper_prefixes([deep]).of(deep) == "weight"


# Aliases of safetensors.torch.save_model


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.inner = nn.ModuleList([self.head])


def test_aliases_are_ties(tmp_path) -> None:
    torch.manual_seed(1)
    module, path = Tied(), tmp_path / "net.safetensors"
    save_model(module, str(path))
    graph = open_file(path)
    assert graph.ties == {"head.weight": "embed.weight", "inner.0.weight": "embed.weight"}
    assert graph.size == 40
    here, there = Tied(), Tied()
    load_into(here, graph)
    load_model(there, str(path))
    for key, tensor in there.state_dict().items():
        assert torch.equal(here.state_dict()[key], tensor)
    again = open_file(save_safetensors(graph, tmp_path / "again.safetensors"))
    assert again.ties == graph.ties
    state = torch.load(save_checkpoint(graph, tmp_path / "again.pt"))
    assert state.keys() == module.state_dict().keys()


def test_aliases_have_plain_names_too(tmp_path) -> None:
    save_model(nn.ModuleDict({"module": Tied()}), str(tmp_path / "net.safetensors"))
    graph = open_file(tmp_path / "net.safetensors")
    assert graph.ties == {"head.weight": "embed.weight", "inner.0.weight": "embed.weight"}


@pytest.mark.parametrize(
    "metadata",
    [{"format": "a"}, {"a": "b"}, {"other": "nowhere"}, {"title": "a network"}, {"b": "b"}],
)
def test_other_metadata_are_no_aliases(metadata: dict[str, str], tmp_path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "n.safetensors", metadata)
    graph = open_file(tmp_path / "n.safetensors")
    assert graph.ties == {}
    assert graph.size == 4
