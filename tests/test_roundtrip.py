"""Any network in, exactly the same network out: tokens lose nothing and leave nothing behind."""

import pytest
import torch
from networks import CHECKPOINTS, HAND_MADE, TORCHVISION

from sane_plugins.weights.files import from_state_dict, open_file
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.modules import from_module
from sane_plugins.weights.tokens import detokenize, tokenize
from sane_plugins.zoo.store import import_published

WIDTHS = (16, 128, 289)
FOLDED = ("part of a pruned tensor", "original of a parametrisation")


def assert_exact(graph: WeightGraph, widths: tuple[int, ...] = WIDTHS) -> None:
    """Assert that tokens give back every tensor bit for bit, and count every value once."""
    for width in widths:
        tokens = tokenize(graph, width)
        blank = graph.replace({p.key: torch.full(p.shape, 7).to(p.dtype) for p in graph.params})
        back = detokenize(tokens, blank)
        assert int(tokens.mask.sum()) == graph.size
        for param, tensor in graph.items():
            assert back.tensors[param.key].dtype == tensor.dtype
            assert torch.equal(back.tensors[param.key], tensor), param.key


def assert_covered(graph: WeightGraph, state: dict[str, torch.Tensor]) -> None:
    """Assert that every tensor of the state is owned, tied, or left out for a stated reason."""
    owned = {param.key for param in graph.params}
    for key, tensor in state.items():
        if tensor.is_floating_point() and key not in owned and key not in graph.ties:
            assert graph.untouched[key].startswith(FOLDED), key
        elif not tensor.is_floating_point():
            assert graph.untouched[key], key


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_networks(name: str) -> None:
    torch.manual_seed(0)
    network = HAND_MADE[name]()
    graph = from_module(network)
    assert_exact(graph)
    assert_covered(graph, network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks(name: str) -> None:
    pytest.importorskip("sane_torchvision.load").import_torchvision()
    from sane_plugins import Host

    network = Host.installed().build(f"torchvision:{name}", None)
    graph = from_module(network)
    assert_exact(graph, (128,))
    assert_covered(graph, network.state_dict())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_real_checkpoints(sane_data, name: str) -> None:
    graph = open_file(sane_data / "checkpoints" / name)
    assert_exact(graph)
    assert_covered(graph, graph.state_dict())


@pytest.mark.parametrize("name", ["mnist-cnn", "cifar10-cnn"])
def test_zoo_networks(sane_data, name: str) -> None:
    zoo = import_published(sane_data / "zoos" / f"{name}.json")
    for entry in zoo.entries[::97]:
        assert_exact(zoo.graph(entry))


@pytest.mark.parametrize(
    "name", ["tied", "lstm", "transformer", "lone tensors", "depthwise", "double"]
)
def test_a_module_and_its_state_dict_give_the_same_tokens(name: str) -> None:
    torch.manual_seed(0)
    network = HAND_MADE[name]()
    here, there = (
        tokenize(g, 16)
        for g in (from_module(network), from_state_dict(network.state_dict(), "state"))
    )
    assert torch.equal(here.values, there.values)
    assert torch.equal(here.positions, there.positions)


def test_positions_tell_slot_and_channel() -> None:
    graph = from_module(torch.nn.Sequential(torch.nn.Linear(20, 3), torch.nn.Linear(3, 2)))
    tokens = tokenize(graph, 16)
    assert tokens.positions.tolist() == [
        [0, 0, 0], [1, 0, 0], [2, 0, 1], [3, 0, 1], [4, 0, 2], [5, 0, 2], [6, 1, 0], [7, 1, 1],
    ]  # fmt: skip
    assert tokens.spans == [(0, 6), (6, 8)]
    assert tokens.mask.sum(1).tolist() == [16, 5] * 3 + [4, 4]
