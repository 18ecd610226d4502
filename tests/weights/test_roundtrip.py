"""Any network in, exactly the same network out: tokens lose nothing and leave nothing behind."""

import warnings

import pytest
import torch
from networks import CHECKPOINTS, HAND_MADE, TORCHVISION
from safetensors import safe_open

from sane_plugins.errors import SourceError
from sane_plugins.formats import from_state_dict, open_file
from sane_plugins.symmetry import permutation_groups
from sane_plugins.weights import WeightGraph, detokenize, from_module, tokenize
from sane_plugins.zoo import import_published

WIDTHS = (16, 128, 289)
FOLDED = ("part of a pruned tensor", "part of a weight-normed", "original of a parametrisation")


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
    pytest.importorskip("sane_plugins.architectures.torchvision_import").import_torchvision()
    from sane_plugins import Host

    network = Host.installed().build(f"torchvision:{name}", None)
    graph = from_module(network)
    assert_exact(graph, (128,))
    assert_covered(graph, network.state_dict())
    there = from_state_dict(network.state_dict(), name)
    here = [(slot.weight.key, slot.bias and slot.bias.key) for slot in graph.slots]
    assert here == [(slot.weight.key, slot.bias and slot.bias.key) for slot in there.slots]


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


def assert_same_tokens(one: WeightGraph, other: WeightGraph) -> None:
    here, there = tokenize(one, 16), tokenize(other, 16)
    assert torch.equal(here.values, there.values)
    assert torch.equal(here.positions, there.positions)
    assert one.ties == other.ties


# A file does not say that a convolution is transposed.
@pytest.mark.parametrize("name", [n for n in HAND_MADE if n != "transposed"])
def test_a_module_and_its_state_dict_give_the_same_tokens(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    network = HAND_MADE[name]()
    graph = from_module(network)
    assert_same_tokens(graph, from_state_dict(network.state_dict(), "state"))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    assert_same_tokens(graph, open_file(tmp_path / "net.pth"))


def test_a_traced_layer_of_lone_tensors_keeps_its_permutations() -> None:
    assert permutation_groups(from_module(HAND_MADE["bias first"]()))


def test_reading_changes_nothing() -> None:
    network = HAND_MADE["spectral"]().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    from_module(network)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(part.training for part in network.modules())


def test_the_meta_device_ties_nothing() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    assert not from_module(network).ties
    assert not from_state_dict(network.state_dict(), "state").ties


def test_a_lazy_layer_without_values_is_one_sentence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases of torch call lazy modules new
        network = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 2))
    with pytest.raises(
        SourceError, match=r"'0\.weight': it has no values yet.*call the module once"
    ):
        from_module(network)


class _Packed(torch.nn.Linear):
    """Saves something that is no parameter, as quantised layers do."""

    def get_extra_state(self):
        return {"packed": (1, 2)}


def test_what_is_no_tensor_is_named() -> None:
    assert "no parameter or buffer" in from_module(_Packed(3, 2)).untouched["_extra_state"]


@pytest.mark.parametrize("name", ["mnist-cnn", "cifar10-cnn"])
def test_a_zoo_file_is_a_lazy_network_too(sane_data, name: str) -> None:
    with safe_open(sane_data / "zoos" / f"{name}.safetensors", framework="pt") as file:
        first = list(file.keys())[:30]
        state = {key: file.get_tensor(key) for key in first}
    graph = from_state_dict(state, name)
    assert_exact(graph)
    assert_covered(graph, state)


def test_positions_tell_slot_and_channel() -> None:
    graph = from_module(torch.nn.Sequential(torch.nn.Linear(20, 3), torch.nn.Linear(3, 2)))
    tokens = tokenize(graph, 16)
    assert tokens.positions.tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [2, 0, 1],
        [3, 0, 1],
        [4, 0, 2],
        [5, 0, 2],
        [6, 1, 0],
        [7, 1, 1],
    ]
    assert graph.token_layout(16).spans == ((0, 6), (6, 8))
    assert tokens.mask.sum(1).tolist() == [16, 5] * 3 + [4, 4]
