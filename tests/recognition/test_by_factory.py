"""--factory says which network a file is of; a file of another network is refused in a sentence."""

import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from networks import Tied
from safetensors.torch import save_file
from torch import nn

from sane_plugins import Host, SourceError
from sane_plugins.cli.main import main
from sane_plugins.formats import from_state_dict
from sane_plugins.recognition import NamedBuilder, with_layers_built
from sane_plugins.weights import from_module

NETWORKS = """
from torch import nn

def build(classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(),
        nn.Linear(6 * 16, classes),
    )

def fixed():
    return build()

def needs_values():
    network = build()
    assert network[0].weight.abs().sum().item() > 0
    return network
"""


@pytest.fixture
def networks(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)


def _built(classes: int = 10, channels: int = 3) -> nn.Module:
    scope: dict = {}
    exec(NETWORKS, scope)
    network = scope["build"](classes)
    network[0] = nn.Conv2d(channels, 8, 3)
    return network


def _run(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "net."])
@pytest.mark.parametrize(
    ("factory", "classes", "channels"),
    [("build", 10, 3), ("build", 4, 1), ("fixed", 4, 1), ("needs_values", 10, 3)],
)
@pytest.mark.usefixtures("networks")
def test_a_file_gets_the_layers_of_what_is_built(
    tmp_path, prefix, factory, classes, channels
) -> None:
    network = _built(classes, channels)
    save_file(
        {prefix + k: v for k, v in network.state_dict().items()}, tmp_path / "net.safetensors"
    )
    name = f"own_networks:{factory}"
    done = _run("inspect", tmp_path / "net.safetensors", "--factory", name, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["recognized"] == [name]
    assert told["topology"] is True
    assert told["permutation_groups"] == 2
    assert [x["kind"] for x in told["layers"]] == ["conv", "norm", "conv", "linear"]


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("command", ["inspect", "embed", "predict"])
def test_a_file_of_another_network_is_refused(tmp_path, command: str) -> None:
    network = _built()
    network[3] = nn.Conv2d(8, 6, 1)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    done = _run(command, tmp_path / "net.pt", "--factory", "own_networks:build")
    assert done.exit_code == 1
    assert "Error: " in done.stderr
    assert "'3.weight', (6, 8, 1, 1) in the file and (6, 8, 3, 3) in the network" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"9.weight": torch.zeros(3)}, "'9.weight', which the file has"),
        ({"5.bias": None}, "'5.bias', which the file lacks"),
        ({"5.bias": torch.zeros(11)}, "'5.bias', (11,) in the file and (10,) in the network"),
        ({"3.weight": torch.zeros(6, 9, 3, 3), "0.weight": torch.zeros(8, 4, 3, 3)}, "'3.weight'"),
    ],
)
def test_what_differs_is_named(change, said: str) -> None:
    state = {k: v for k, v in {**_built().state_dict(), **change}.items() if v is not None}
    builder = NamedBuilder("mine", lambda classes: _built(classes or 10))
    with pytest.raises(SourceError, match="the factory must build the network") as error:
        with_layers_built(from_state_dict(state, "file"), [builder])
    assert said in str(error.value)


def test_the_first_factory_that_fits_is_taken() -> None:
    builders = [
        NamedBuilder("other", lambda _: nn.Linear(3, 4)),
        NamedBuilder("mine", lambda classes: _built(classes or 10)),
    ]
    graph = with_layers_built(from_state_dict(_built(7).state_dict(), "file"), builders)
    assert graph.recognized == ("mine",)


def test_ties_of_the_network_are_those_of_the_file(tmp_path) -> None:
    torch.save(Tied().state_dict(), tmp_path / "tied.pt")
    host, builder = Host.installed(), NamedBuilder("tied", lambda _: Tied())
    graph = with_layers_built(host.open(tmp_path / "tied.pt"), [builder])
    assert graph.ties == from_module(Tied()).ties
    copied = {key: value.clone() for key, value in Tied().state_dict().items()}
    again = with_layers_built(from_state_dict(copied, "file"), [builder])
    assert again.ties == graph.ties
    assert again.size == graph.size
    copied["out.weight"] += 1
    with pytest.raises(SourceError, match="ties tensors that differ"):
        with_layers_built(from_state_dict(copied, "file"), [builder])


def test_a_zoo_says_what_builds_its_networks(tmp_path) -> None:
    from sane_plugins.architectures import mlp
    from sane_plugins.zoo import AddOptions, add_networks

    network = partial(mlp, width=5, act="tanh")
    (tmp_path / "runs").mkdir()
    torch.save(network().state_dict(), tmp_path / "runs" / "a.pt")
    factory = {"name": "mlp", "width": 5, "act": "tanh"}
    host = Host.installed()
    add_networks(tmp_path / "runs", tmp_path / "zoo", host.open, AddOptions(factory=factory))
    torch.save(network(classes=4).state_dict(), tmp_path / "b.pt")
    done = _run("inspect", tmp_path / "b.pt", "--factory", tmp_path / "zoo", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["recognized"] == ["mlp(width=5, act='tanh')"]


def test_a_module_or_an_onnx_file_says_itself_how_it_is_connected() -> None:
    graph = from_module(_built())
    assert with_layers_built(graph, [NamedBuilder("other", lambda _: nn.Linear(3, 4))]) is graph
