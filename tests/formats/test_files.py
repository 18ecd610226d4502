"""Files: what is written is read back, and bad ones are one clear sentence."""

import json
import pickle
import signal
from pathlib import Path
from random import Random

import pytest
import torch
from networks import HAND_MADE
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from sane_plugins.atomic_files import require_outputs
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.formats import from_state_dict, open_file, save_checkpoint, save_safetensors
from sane_plugins.weights import from_module, load_into, load_nearest, tokenize

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_written_and_read_back(name: str, suffix: str, tmp_path) -> None:
    torch.manual_seed(0)
    graph = from_module(HAND_MADE[name]())
    write = save_safetensors if suffix == ".safetensors" else save_checkpoint
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
            parameter.copy_(-1.5 * parameter.double())
    load_into(other, from_module(one))
    wanted, got = from_module(one).state_dict(), from_module(other).state_dict()
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor)


def test_pruned_entries_stay_zero() -> None:
    network = HAND_MADE["pruned"]()
    graph = from_module(network)
    assert float((graph.tensors["0.weight"] == 0).float().mean()) == pytest.approx(0.6, abs=0.01)
    full = graph.replace({"0.weight": torch.ones_like(graph.tensors["0.weight"])})
    with pytest.raises(SourceError, match="pruned entries must be zero"):
        load_into(network, full)
    load_nearest(network, full)
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
        ("missing", "does not exist"),
        ("empty", "it is empty"),
        ("folder", "it is a folder"),
        ("text", "no torch checkpoint"),
        ("code", "can run code"),
        ("cut", "broken"),
        ("truncated", "no whole safetensors"),
        ("numbers", "no mapping from names to tensors"),
        ("integers", "no floating-point tensor"),
    ],
)
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
        require_outputs([path])
    assert path.read_text() == "precious"
    require_outputs([path], force=True)


def test_weights_of_another_shape_change_nothing() -> None:
    network, other = nn.Linear(3, 2), nn.Linear(4, 2)
    before = other.weight.clone()
    with pytest.raises(SourceError, match="shape"):
        load_into(other, from_module(network))
    assert torch.equal(other.weight, before)


def test_an_optimizer_larger_than_its_network_is_no_network(tmp_path) -> None:
    network = nn.Sequential(nn.Linear(78, 10), nn.ReLU(), nn.Linear(10, 2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 78)).sum().backward()
    optimizer.step()
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "net.pt")
    graph = open_file(tmp_path / "net.pt")
    assert [p.key for p in graph.params] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not any("not read" in note for note in graph.notes)


def test_a_second_network_is_not_dropped_silently(tmp_path) -> None:
    content = {"encoder": nn.Linear(9, 9).state_dict(), "decoder": nn.Linear(3, 2).state_dict()}
    torch.save(content, tmp_path / "two.pt")
    notes = " ".join(open_file(tmp_path / "two.pt").notes)
    assert "read from 'encoder'" in notes
    assert "not read: 'decoder'" in notes


def test_of_two_networks_alike_the_first_is_read(tmp_path) -> None:
    content = {"model": nn.Linear(3, 2).state_dict(), "ema": nn.Linear(3, 2).state_dict()}
    torch.save(content, tmp_path / "two.pt")
    graph = open_file(tmp_path / "two.pt")
    assert torch.equal(graph.tensors["weight"], content["model"]["weight"])


def _write_laid_out(path, names: list[str]) -> None:
    """Write a safetensors file by hand, its tensors in the order given."""
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + bytes(4 * len(names)))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["stem.weight", "body.weight", "head.weight"], ["stem", "body", "head"]),
        (["10.weight", "2.weight", "head.weight"], ["2", "10", "head"]),
    ],
)
def test_foreign_safetensors_keep_their_order_where_they_have_one(names, wanted, tmp_path) -> None:
    _write_laid_out(tmp_path / "net.safetensors", names)
    graph = open_file(tmp_path / "net.safetensors")
    assert [layer.name for layer in graph.layers] == wanted
    assert any("order of their names" in note for note in graph.notes) == (wanted[0] == "2")


def test_silero_keeps_its_order(sane_data) -> None:
    path = sane_data / "checkpoints" / "pypi_silero_vad" / "silero_vad_16k.safetensors"
    assert open_file(path).layers[0].name == "stft_conv"


@pytest.mark.parametrize("told", ["yes", "[]", '{"keys": 3}', '{"keys": ["a.weight"], "ties": []}'])
def test_metadata_of_others_is_left_alone(told: str, tmp_path) -> None:
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "n.safetensors", metadata={"sane": told})
    assert [p.key for p in open_file(tmp_path / "n.safetensors").params] == ["a.weight"]


def test_an_original_and_a_mask_of_other_shape_are_not_pruning(tmp_path) -> None:
    torch.save({"a.x_orig": torch.ones(4), "a.x_mask": torch.ones(3)}, tmp_path / "n.pt")
    assert [p.key for p in open_file(tmp_path / "n.pt").params] == ["a.x_orig", "a.x_mask"]


def test_any_reader_finds_tied_tensors(tmp_path) -> None:
    network = HAND_MADE["tied"]()
    path = save_safetensors(from_module(network), tmp_path / "net.safetensors")
    HAND_MADE["tied"]().load_state_dict(load_file(path))
    assert open_file(path).ties == {"out.weight": "embed.weight"}


@pytest.mark.parametrize("write", [save_safetensors, save_checkpoint])
def test_files_may_be_read_by_whom_the_system_lets(write, tmp_path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = write(from_module(nn.Linear(2, 2)), tmp_path / "net.pt")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_begins_as_a_pickle_does(length: int, tmp_path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    path = tmp_path / "net.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    assert path.read_bytes()[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
    assert open_file(path).size == 2


@pytest.mark.parametrize("write", [save_safetensors, save_checkpoint])
def test_a_full_disk_leaves_the_old_file(write, tmp_path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "net.pt"
    path.write_bytes(b"precious")
    graph = from_module(nn.Linear(100, 100))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SourceError, match="cannot be written") as caught:
            write(graph, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"precious"


def test_types_that_safetensors_does_not_know_are_one_sentence(tmp_path) -> None:
    network = nn.Linear(3, 2)
    network.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    graph = from_module(network)
    assert "complex128" in graph.untouched["phase"]
    with pytest.raises(SourceError, match=r"complex128.*write a \.pt file"):
        save_safetensors(graph, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    again = open_file(save_checkpoint(graph, tmp_path / "net.pt"))
    assert torch.equal(again.tensors["phase"], network.phase)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is")
def test_a_script_is_read_without_being_run(sane_data) -> None:
    path = sane_data / "checkpoints" / "pypi_silero_vad" / "silero_vad.jit"
    graph, wanted = open_file(path), torch.jit.load(path).state_dict()
    others = ["_state", "_context", "constants.0"]  # empty attributes, and one of its code
    assert sorted(graph.tensors) == sorted([*wanted, *others])
    for key, tensor in wanted.items():
        assert torch.equal(graph.tensors[key], tensor)
    assert {param.key for param in graph.params} >= wanted.keys()
    assert graph.coverage == 1
    tokenize(graph, 16)


@pytest.mark.parametrize(
    "name", ["pypi_facenet_pytorch/pnet.pt", "pypi_lpips/alex.pth", "pypi_ccexam/usps.pth"]
)
def test_any_damage_is_one_sentence(sane_data, name: str, tmp_path) -> None:
    data, rng = (sane_data / "checkpoints" / name).read_bytes(), Random(0)
    path = tmp_path / "net.pt"
    for _ in range(30):
        path.write_bytes(data[: rng.randrange(1, min(len(data), rng.choice([3000, len(data)])))])
        with pytest.raises(SourceError) as caught:
            open_file(path)
        assert "\n" not in str(caught.value)


class _NoInverse(nn.Module):
    def forward(self, x):
        return x.exp()


def test_a_parametrisation_without_inverse_leaves_the_module_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    parametrize.register_parametrization(network[1], "weight", _NoInverse())
    before = network[0].weight.clone()
    graph = from_module(network)
    graph = graph.replace(
        {"0.weight": torch.zeros(3, 3), "1.weight": graph.tensors["1.weight"] * 2}
    )
    with pytest.raises(SourceError, match="remove_parametrizations"):
        load_into(network, graph)
    assert torch.equal(network[0].weight, before)


def test_pruned_weights_are_in_use_at_once() -> None:
    network = HAND_MADE["late pruned"]()
    graph = from_module(network)
    load_nearest(network, graph.replace({"2.weight": torch.ones(3, 4)}))
    assert torch.equal(network[2].weight, network[2].weight_mask)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"0.weight": torch.ones(5, 4)}, r"'1\.weight': the tensor is missing"),
        (
            {"0.weight": torch.ones(5, 4), "1.weight": torch.zeros(5, 4)},
            r"'1\.weight': its values are not those of '0\.weight'",
        ),
        (
            {"0.weight": torch.ones(5, 4), "1.weight": torch.ones(5, 4), "2.bias": torch.ones(1)},
            r"'2\.bias': the module has no such tensor",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing(state, said: str) -> None:
    network = HAND_MADE["same memory"]()
    before = network[0].weight.clone()
    with pytest.raises(SourceError, match=said):
        load_into(network, from_state_dict(state, "state"))
    assert torch.equal(network[0].weight, before)


def test_counters_that_a_file_lacks_stay() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    network(torch.randn(4, 3))
    state = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    load_into(network, from_state_dict(state, "state"))
    assert int(network[1].num_batches_tracked) == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_can_be_written_over_while_it_is_read(suffix: str, tmp_path) -> None:
    write = save_safetensors if suffix == ".safetensors" else save_checkpoint
    path = write(from_module(nn.Linear(40, 30)), tmp_path / f"net{suffix}")
    graph = open_file(path)
    wanted = graph.tensors["weight"].clone()
    write(graph.replace({"bias": torch.zeros(30)}), path)
    assert torch.equal(graph.tensors["weight"], wanted)
    assert torch.equal(open_file(path).tensors["weight"], wanted)
    assert not open_file(path).tensors["bias"].any()


def test_our_own_other_files_are_no_networks() -> None:
    data = ROOT / "sane_plugins" / "data"
    for name, said in (("sane", "our own SANE"), ("heads", "our own property heads")):
        with pytest.raises(SourceError, match=said):
            open_file(data / f"{name}.safetensors")
