"""Relatives of published networks are recognised, whatever was done to them; strangers are not."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sane_plugins.fingerprints import (
    NetworkFingerprint,
    families,
    family_tree,
    fingerprint,
    from_arrays,
    match_layers,
    most_alike,
    nearest,
    pack_all,
    relate,
    to_arrays,
)
from sane_plugins.fingerprints.balanced import Balanced
from sane_plugins.fingerprints.pairs_of_many import ManyNetworks
from sane_plugins.formats import from_state_dict
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import WeightGraph, from_module
from sane_plugins.zoo import import_published

COUNT = 8


@pytest.fixture(scope="module")
def graphs(sane_data: Path) -> dict[str, WeightGraph]:
    """The last checkpoints of networks of one architecture and dataset, good ones."""
    zoo = import_published(sane_data / "zoos" / "cifar10-cnn.json").where(
        lambda entry: entry.properties["epoch"] == 12
    )
    return {entry.key: zoo.graph(entry) for entry in zoo.best("test_accuracy", COUNT).entries}


@pytest.fixture(scope="module")
def prints(graphs: dict[str, WeightGraph]) -> dict[str, NetworkFingerprint]:
    return {name: fingerprint(graph) for name, graph in graphs.items()}


def shuffled(graph: WeightGraph, seed: int = 0) -> WeightGraph:
    groups = permutation_groups(graph)
    rng = torch.Generator().manual_seed(seed)
    return permute(graph, random_permutations(groups, rng), groups)


def noisy(graph: WeightGraph, share: float) -> WeightGraph:
    rng = torch.Generator().manual_seed(1)
    return graph.replace(
        {p.key: x + share * x.std() * torch.randn(x.shape, generator=rng) for p, x in graph.items()}
    )


def rounded(graph: WeightGraph) -> WeightGraph:
    steps = {p.key: x.abs().max() / 127 for p, x in graph.items() if x.ndim > 1}
    return graph.replace({k: (graph.tensors[k] / s).round() * s for k, s in steps.items()})


def pruned(graph: WeightGraph) -> WeightGraph:
    return graph.replace(
        {p.key: x * (x.abs() > x.abs().quantile(0.6)) for p, x in graph.items() if x.ndim > 1}
    )


def scaled(graph: WeightGraph) -> WeightGraph:
    """Each output channel times a factor of its own, as where a norm is folded in."""
    rng = torch.Generator().manual_seed(2)
    return graph.replace(
        {
            p.key: x * (0.3 + torch.rand(len(x), *[1] * (x.ndim - 1), generator=rng))
            for p, x in graph.items()
            if x.ndim > 1
        }
    )


def renamed(graph: WeightGraph) -> WeightGraph:
    named = {f"x{9 - i}.{p.key.rpartition('.')[2]}": x for i, (p, x) in enumerate(graph.items())}
    return from_state_dict(named, "renamed")


CHANGES = {
    "shuffled": shuffled,
    "noise": lambda graph: noisy(graph, 0.1),
    "shuffled and noise": lambda graph: shuffled(noisy(graph, 0.1)),
    "rounded": rounded,
    "pruned": pruned,
    "scaled and shuffled": lambda graph: shuffled(scaled(graph)),
    "renamed": renamed,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_origin_is_found_first_and_strangers_are_not(graphs, prints, change):
    packed = pack_all(prints.items())
    for name in [*graphs][:3]:
        found = nearest(fingerprint(change(graphs[name])), packed)
        assert found[0].name == name
        assert [x.name for x in found if x.relationship.is_related] == [name]


def test_strangers_of_one_recipe_are_no_relatives(prints):
    ones = [*prints.values()]
    assert not any(relate(a, b).is_related for i, a in enumerate(ones) for b in ones[:i])


def test_fresh_networks_and_constants_have_nothing_in_common():
    def fresh(seed):
        torch.manual_seed(seed)
        return fingerprint(
            from_module(nn.Sequential(nn.Linear(30, 50), nn.LayerNorm(50), nn.Linear(50, 50)))
        )

    def constant():
        module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        for x in module.parameters():
            nn.init.ones_(x)
        return fingerprint(from_module(module))

    assert relate(fresh(0), fresh(0)).is_same
    assert not relate(fresh(0), fresh(1)).is_related
    assert not relate(constant(), constant()).is_related


def test_rounding_to_half_is_the_same_and_noise_is_not(graphs, prints):
    name, graph = next(iter(graphs.items()))
    half = graph.replace({p.key: x.half().float() for p, x in graph.items()})
    assert relate(prints[name], fingerprint(half)).is_same
    assert relate(prints[name], fingerprint(shuffled(half))).is_same
    assert not relate(prints[name], fingerprint(noisy(graph, 0.05))).is_same


def test_layers_are_paired_by_content(graphs, prints):
    name, graph = next(iter(graphs.items()))
    torch.manual_seed(0)
    layers = {"front.weight": torch.randn(3, 3, 5, 5), "front.bias": torch.randn(3)}
    more = from_state_dict({**layers, **shuffled(graph).state_dict()}, "more")
    found = match_layers(prints[name], fingerprint(more))
    assert all(pair.a == pair.b for pair in found.pairs)
    assert found.only_a == () and set(found.only_b) == {"front.weight", "front.bias"}
    assert found.similarity > 0.95
    other = match_layers(prints[name], [*prints.values()][1])
    assert all(pair.a == pair.b for pair in other.pairs), "without content, shape and place decide"
    assert other.similarity < 0.2


def test_a_transposed_matrix_is_recognised():
    torch.manual_seed(0)
    x, y = torch.randn(24, 40), torch.randn(24, 24)
    one = from_state_dict({"a.weight": x, "b.weight": y}, "one", axes={})
    two = from_state_dict({"p.weight": x.T.clone(), "q.weight": y.T.clone()}, "two", axes={})
    pairs = {
        (pair.a, pair.b): pair.distance
        for pair in match_layers(*map(fingerprint, (one, two))).pairs
    }
    assert pairs.keys() == {("a.weight", "p.weight"), ("b.weight", "q.weight")}
    assert max(pairs.values()) < 0.1


def test_balancing_forgets_scales_on_both_sides():
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3)
    z = [
        np.concatenate([b for _, b in Balanced.of(y).blocks()])
        for y in (x, x * torch.rand(6, 1, 1) * torch.rand(1, 5, 1))
    ]
    assert np.abs(z[0] - z[1]).max() < 0.01
    assert np.square(z[0]).mean((0, 2)) == pytest.approx(1, abs=1e-3)


def test_packed_fingerprints_come_back(prints):
    description, arrays = to_arrays(pack_all(prints.items()))
    (packed,) = from_arrays(description, arrays)
    assert packed.names == tuple(prints)
    for row, network in enumerate(prints.values()):
        assert relate(packed.unpack(row), network).is_same
    arrays["0.moments"] = arrays["0.moments"][:1]
    with pytest.raises(ValueError, match="moments"):
        from_arrays(description, arrays)


def test_strangers_are_listed_by_likeness_after_relatives(graphs, prints):
    name, graph = next(iter(graphs.items()))
    found = most_alike(fingerprint(shuffled(graph)), pack_all(prints.items()), COUNT)
    assert found[0].neighbor.name == name and found[0].distance < 0.05
    assert [x.distance for x in found[1:]] == sorted(x.distance for x in found[1:])
    assert len(found) == COUNT


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_networks_have_no_pairs_too(prints, count):
    many = ManyNetworks(pack_all([*prints.items()][:count]))
    assert many.related_pairs() == [] and many.duplicates() == [] and families(many) == []


def test_checkpoints_of_a_run_are_a_chain(sane_data):
    zoo = import_published(sane_data / "zoos" / "cifar10-cnn.json")
    runs = zoo.where(lambda entry: entry.network in ("0", "2", "3"))
    packed = pack_all((entry.key, fingerprint(zoo.graph(entry))) for entry in runs.entries)
    found = families(ManyNetworks(packed))
    assert [len(family) for family in found] == [6, 6, 6]
    for family in found:
        assert len({x.name.partition("/")[0] for x in family.members}) == 1
        epochs = [int(x.name.partition("/")[2]) for x in family.members]
        assert epochs == sorted(epochs)
        assert not family.members[0].parent


@pytest.mark.parametrize("branches", [(4, 2), (2, 2, 2), (3, 3)])
def test_the_root_of_a_branched_family_is_found(branches):
    """Children take random steps, which make the tails of uniform weights heavier."""
    rng = torch.Generator().manual_seed(sum(branches))
    root = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    for value in root.parameters():
        value.data.uniform_(-0.1, 0.1, generator=rng)
    modules, parents, generation = [root], [-1], [0]
    for count in branches:
        born = []
        for parent in generation:
            for _ in range(count):
                child = deepcopy(modules[parent])
                for value in child.parameters():
                    value.data += 0.03 * torch.randn(value.shape, generator=rng)
                born.append(len(modules))
                modules.append(child)
                parents.append(parent)
        generation = born
    order = [*reversed(range(len(modules)))]
    family = family_tree(
        [str(i) for i in order], [fingerprint(from_module(modules[i])) for i in order]
    )
    assert family.members[0].name == "0"
    place = {int(x.name): i for i, x in enumerate(family.members)}
    assert all(place[parent] < place[i] for i, parent in enumerate(parents) if i)
    assert {int(x.name): int(x.parent) for x in family.members[1:]} == dict(
        enumerate(parents[1:], 1)
    )
