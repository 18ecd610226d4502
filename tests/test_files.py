"""Files: what is written is read back, and bad ones are one clear sentence."""

import pickle

import pytest
import torch
from networks import HAND_MADE
from torch import nn

from sane_plugins.errors import SourceError, UsageError
from sane_plugins.weights.files import open_file
from sane_plugins.weights.modules import from_module, load_into
from sane_plugins.weights.tokens import tokenize
from sane_plugins.weights.writing import require_free, save_checkpoint, save_safetensors


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_written_and_read_back(name: str, suffix: str, tmp_path) -> None:
    torch.manual_seed(0)
    graph = from_module(HAND_MADE[name]())
    write = save_safetensors if suffix == ".safetensors" else save_checkpoint
    if suffix == ".pt" and name == "transposed":
        pytest.skip("a plain state dict does not say that a convolution is transposed")
    again = open_file(write(graph, tmp_path / f"net{suffix}"))
    assert list(tmp_path.iterdir()) == [tmp_path / f"net{suffix}"]
    here, there = tokenize(graph, 16), tokenize(again, 16)
    assert torch.equal(here.values, there.values)
    assert torch.equal(here.positions, there.positions)
    assert again.ties == graph.ties


@pytest.mark.parametrize("name", HAND_MADE)
def test_loaded_into_another_instance_it_is_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    one = HAND_MADE[name]()
    torch.manual_seed(0)
    other = HAND_MADE[name]()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1.5)
    load_into(other, from_module(one))
    wanted, got = from_module(one).state_dict(), from_module(other).state_dict()
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor)


def test_pruned_entries_stay_zero() -> None:
    network = HAND_MADE["pruned"]()
    graph = from_module(network)
    assert float((graph.tensors["0.weight"] == 0).float().mean()) == pytest.approx(0.6, abs=0.01)
    full = graph.replace({"0.weight": torch.ones_like(graph.tensors["0.weight"])})
    load_into(network, full)
    back = from_module(network).tensors["0.weight"]
    assert torch.equal(back == 0, graph.tensors["0.weight"] == 0)


def test_pruned_checkpoint_is_folded(tmp_path) -> None:
    network = HAND_MADE["pruned"]()
    torch.save(network.state_dict(), tmp_path / "pruned.pt")
    graph = open_file(tmp_path / "pruned.pt")
    for param, tensor in from_module(network).items():
        assert torch.equal(graph.tensors[param.key], tensor)
    assert set(graph.untouched) >= {"0.weight_orig", "0.weight_mask"}


def test_nested_and_parallel_checkpoints(tmp_path) -> None:
    network = nn.Linear(3, 2)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters())
    content = {"epoch": 3, "net": {"state": state}, "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "nested.pth")
    graph = open_file(tmp_path / "nested.pth")
    assert [param.key for param in graph.params] == ["weight", "bias"]
    assert "read from 'net.state'" in graph.notes


def test_safetensors_are_read_lazily(tmp_path) -> None:
    graph = open_file(save_safetensors(from_module(nn.Linear(4, 3)), tmp_path / "net.safetensors"))
    assert not isinstance(graph.tensors, dict)
    assert graph.params[0].shape == (3, 4)


class _Code:
    def __reduce__(self):
        return (print, ("code ran",))


def _write_bad(kind: str, folder):
    path = folder / {"text": "net.pt", "code": "net.pth", "truncated": "net.safetensors"}.get(
        kind, "n.pt"
    )
    if kind == "text":
        path.write_text("hello")
    elif kind == "code":
        path.write_bytes(pickle.dumps(_Code(), protocol=2))
    elif kind == "truncated":
        save_safetensors(from_module(nn.Linear(40, 30)), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "cut":
        torch.save(nn.Linear(40, 30).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "numbers":
        torch.save({"epoch": 3}, path)
    elif kind == "integers":
        torch.save({"steps": torch.arange(3)}, path)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"), ("empty", "it is empty"), ("folder", "it is a folder"),
        ("text", "no torch checkpoint"), ("code", "can run code"), ("cut", "broken"),
        ("truncated", "no whole safetensors"), ("numbers", "no mapping from names to tensors"),
        ("integers", "no floating-point tensor"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(kind: str, said: str, tmp_path, capsys) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        open_file(_write_bad(kind, tmp_path))
    assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_nan_weights_are_named() -> None:
    network = nn.Linear(3, 2)
    nn.init.constant_(network.bias, float("nan"))
    with pytest.raises(SourceError, match=r"'bias': 2 of 2 values are not finite"):
        from_module(network).require_finite()


def test_nothing_is_written_over_unasked(tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_text("precious")
    with pytest.raises(UsageError, match="--force"):
        require_free(path, force=False)
    assert path.read_text() == "precious"
    assert require_free(path, force=True) == path


def test_weights_of_another_shape_change_nothing() -> None:
    network, other = nn.Linear(3, 2), nn.Linear(4, 2)
    before = other.weight.clone()
    with pytest.raises(SourceError, match="shape"):
        load_into(other, from_module(network))
    assert torch.equal(other.weight, before)
