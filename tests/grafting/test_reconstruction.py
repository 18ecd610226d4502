"""A pruned network is told from any other by its weights, and fitted to the network that it was cut from."""

import pytest
import torch
from graftnets import FAMILIES, Mlp, ResidualNet, trained
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.grafting import (
    ChannelMaps,
    Matching,
    NetworkUnits,
    Pair,
    PromptInfo,
    PromptNetwork,
    ReconstructionMethod,
    condition,
    find_kept_channels,
    read_units,
)
from sane_plugins.tasks import Task
from sane_plugins.weights import copy_module, from_module

WIDE, NARROW = (10, 14, 16), (10, 8, 9)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def task() -> Task:
    images = nn.functional.interpolate(torch.randn(128, 3, 4, 4, generator=_rng()), size=(16, 16))
    labels = torch.arange(128) % 5
    return Task(
        name="noise",
        x_train=images,
        y_train=labels,
        x_test=images[:5],
        y_test=labels[:5],
        classes=tuple("abcde"),
    )


def _pairs(dense: NetworkUnits, narrow: NetworkUnits) -> Matching:
    pairs = {
        ours.name: Pair(target=ours, sources=(theirs,), similarity=1.0)
        for ours, theirs in zip(narrow.units, dense.units, strict=True)
    }
    return Matching(pairs=pairs, blocks=(), similarity=1.0)


@torch.no_grad()
def _pruned(
    dense: nn.Module, narrow: nn.Module, images: torch.Tensor, seed: int = 0
) -> dict[tuple[int, int], torch.Tensor]:
    """Give a narrower network random channels of a dense one; return which."""
    theirs, ours = read_units(dense, images), read_units(narrow, images)
    matching, rng = _pairs(theirs, ours), _rng(seed)
    kept = {}
    for pair in matching.pairs.values():
        groups = zip(
            (*pair.target.inputs, *pair.target.outputs),
            (*pair.source.inputs, *pair.source.outputs),
            strict=True,
        )
        for one, other in groups:
            size, width = ours.groups[one].size, theirs.groups[other].size
            if size < width and (one, other) not in kept:
                kept[one, other] = torch.randperm(width, generator=rng)[:size].sort().values
    maps, state = ChannelMaps(theirs, ours, matching, kept), narrow.state_dict()
    for pair in matching.pairs.values():
        rows, read = maps.outputs(pair), maps.inputs(pair)
        weight = theirs.weight(pair.source)[rows]
        if pair.target.kind != "depthwise":
            taps = weight.shape[1] // sum(theirs.groups[x].size for x in pair.source.inputs)
            weight = weight[:, (read[:, None] * taps + torch.arange(taps)).flatten()]
        state[pair.target.weight].copy_(weight)
        norms = pair.target.norm.keys if pair.target.norm else {}
        for role, key in norms.items():
            state[key].copy_(theirs.graph.tensors[pair.source.norm.keys[role]][rows])
        if pair.target.bias:
            state[pair.target.bias].copy_(theirs.graph.tensors[pair.source.bias][rows])
    return kept


@pytest.mark.parametrize("family", ["plain", "residual", "mobile", "mlp"])
def test_kept_channels_are_found_by_their_weights(family, task) -> None:
    dense, narrow = trained(FAMILIES[family](WIDE)), trained(FAMILIES[family](NARROW), 1)
    images = task.x_train[:2]
    kept = _pruned(dense, narrow, images)
    found = find_kept_channels(read_units(dense, images), read_units(narrow, images))
    assert found is not None
    assert found.likeness == pytest.approx(1.0)
    assert kept.keys() == found.maps.keys()
    for groups, channels in kept.items():
        assert torch.equal(found.maps[groups], channels)
    with torch.no_grad():  # trained on a little
        for parameter in narrow.parameters():
            parameter += (
                0.1 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=_rng(3))
            )
    again = find_kept_channels(read_units(dense, images), read_units(narrow, images))
    assert again is not None
    assert all(torch.equal(again.maps[groups], channels) for groups, channels in kept.items())


@pytest.mark.parametrize("family", ["plain", "residual", "mobile", "mlp"])
def test_other_networks_are_no_pruned_copies(family, task) -> None:
    images = task.x_train[:2]
    dense = read_units(trained(FAMILIES[family](WIDE)), images)
    torch.manual_seed(0)
    fresh = FAMILIES[family](NARROW)
    assert find_kept_channels(dense, read_units(fresh, images)) is None
    # Nothing was removed, more was added, other layers.
    assert find_kept_channels(dense, dense) is None
    wider = read_units(trained(FAMILIES[family]((12, 20, 24))), images)
    assert find_kept_channels(dense, wider) is None
    other = read_units(ResidualNet(NARROW) if family == "mlp" else Mlp(NARROW), images)
    assert find_kept_channels(dense, other) is None


def _distance(one: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((one.eval()(images) - other.eval()(images)).norm())


def test_what_was_pruned_computes_again_what_the_dense_network_does(task) -> None:
    dense, narrow = trained(ResidualNet((6, 16, 16))), trained(ResidualNet((6, 8, 16)), 1)
    _pruned(dense, narrow, task.x_train[:2])
    before = copy_module(narrow)
    condition(before, task.x_train, 8, 32, _rng())
    states = []
    for labels in (task.y_train, task.y_train.flip(0)):
        target, own = copy_module(narrow), Task(**{**vars(task), "y_train": labels})
        prompt = PromptNetwork(
            graph=from_module(dense),
            info=PromptInfo(name="dense"),
            build=lambda: copy_module(dense),
        )
        written = ReconstructionMethod()(target, prompt, own, _rng())
        states.append(target.state_dict())
    assert {"up.0.weight", "down.0.weight", "mix.1.weight"} <= written.origins.keys()
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())
    assert _distance(target, dense, task.x_train) < 0.6 * _distance(before, dense, task.x_train)


def test_a_network_that_was_not_pruned_from_the_prompt_is_declined(task) -> None:
    dense = trained(ResidualNet(WIDE))
    prompt = PromptNetwork(
        graph=from_module(dense), info=PromptInfo(name="dense"), build=lambda: dense
    )
    torch.manual_seed(0)
    target = ResidualNet(NARROW)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(SourceError, match="not this network with fewer channels"):
        ReconstructionMethod()(target, prompt, task, _rng())
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())
