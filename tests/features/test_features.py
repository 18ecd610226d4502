"""Features that heads read: the same for any order of channels, as many for any network, always finite."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from sane_plugins.architectures import build, small_cnn
from sane_plugins.features import EncodeOptions, SaneEncoder, statistics
from sane_plugins.features.layer_statistics import decisions
from sane_plugins.features.sane_features import is_probed
from sane_plugins.symmetry import canonical_form, permutation_groups, permute, random_permutations
from sane_plugins.weights import WeightGraph, from_module
from sane_plugins.zoo import import_published

SHARE = 1e-3  # of a feature's deviation over the zoo: rounding is left, nothing else


def sane(graph: WeightGraph) -> torch.Tensor:
    """Return the features of the embedded SANE, encoded in single precision."""
    return SaneEncoder().features(graph, EncodeOptions(precision="float32"))


KINDS: dict[str, Callable[[WeightGraph], torch.Tensor]] = {"sane": sane, "statistics": statistics}
ARCHITECTURES = {
    "mlp": {"name": "mlp"},
    "cnn": {"name": "small_cnn", "channels_in": 3},
    "resnet": {"name": "resnet", "channels_in": 1, "depth": 8, "width": 8},
    "vit": {"name": "vit"},
}


def shuffled(graph: WeightGraph, seed: int) -> WeightGraph:
    """Return the same function with its channels in another order."""
    rng, known = torch.Generator().manual_seed(seed), permutation_groups(graph)
    return permute(graph, random_permutations(known, rng), known)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mnist-cnn", "cifar10-cnn"])
def test_channel_order_does_not_matter_to_features(kind: str, name: str, sane_data) -> None:
    zoo = import_published(sane_data / "zoos" / f"{name}.json")
    graphs = [zoo.graph(entry) for entry in zoo.entries[::47] if entry.properties["finite"]]
    found = np.stack([KINDS[kind](graph).numpy() for graph in graphs])
    mixed = np.stack([KINDS[kind](shuffled(graph, i)).numpy() for i, graph in enumerate(graphs)])
    spread = np.maximum(found.std(0), 1e-3)
    assert np.quantile(np.abs(found - mixed) / spread, 0.99) < SHARE


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_as_many_for_any_architecture_and_finite(kind: str) -> None:
    torch.manual_seed(0)
    found = {name: KINDS[kind](from_module(build(how))) for name, how in ARCHITECTURES.items()}
    assert len({x.shape for x in found.values()}) == 1
    assert all(x.isfinite().all() for x in found.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e15], ids=str)
def test_features_of_constant_tensors_are_finite(kind: str, value: float) -> None:
    network = small_cnn()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    assert KINDS[kind](from_module(network)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(1, 1),
        nn.Linear(1, 1, bias=False),
        nn.BatchNorm1d(1),
        nn.Embedding(1, 1),
        nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)),
    ],
    ids=str,
)
def test_features_of_tiny_tensors_are_finite(kind: str, network: nn.Module) -> None:
    assert KINDS[kind](from_module(network)).isfinite().all()


def test_the_order_of_channels_is_canonical_and_keeps_the_function() -> None:
    torch.manual_seed(0)
    graph = from_module(build(ARCHITECTURES["resnet"]))
    first, second = canonical_form(graph), canonical_form(shuffled(graph, 1))
    for param, tensor in first.items():
        assert torch.equal(tensor, second.tensors[param.key])
    np.testing.assert_allclose(decisions(first), decisions(graph), rtol=1e-6, atol=1e-9)


def test_only_networks_whose_matrices_are_a_chain_are_decoded() -> None:
    assert is_probed(from_module(small_cnn()))
    assert is_probed(from_module(build(ARCHITECTURES["resnet"])))
    assert not is_probed(from_module(nn.BatchNorm2d(4)))
    assert not is_probed(from_module(nn.Sequential(nn.Linear(5, 4), nn.Linear(7, 3))))


def test_a_normalisation_is_folded_into_what_it_follows() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    network = nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 3)).eval()
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    with torch.no_grad():
        plain[0].weight.copy_(network[0].weight * factor[:, None])
        plain[0].bias.copy_((network[0].bias - norm.running_mean) * factor + norm.bias)
        plain[2].load_state_dict(network[3].state_dict())
    found = decisions(from_module(network))
    np.testing.assert_allclose(found, decisions(from_module(plain)), rtol=1e-5, atol=1e-6)
