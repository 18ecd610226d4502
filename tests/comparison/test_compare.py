"""Two networks: who is whose partner, what became of each layer, and the verdict."""

from itertools import pairwise

import pytest
import torch
from networks import HAND_MADE
from torch import nn

from sane_plugins.architectures import resnet, small_cnn
from sane_plugins.comparison import (
    VerdictKind,
    compare,
    comparison_record,
    judge,
    summary_lines,
    table_of_layers,
    verdict_line,
)
from sane_plugins.formats import from_state_dict
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import WeightGraph, copy_module, from_module


def _used(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module in evaluation, its norms not at their initial values."""
    rng = torch.Generator().manual_seed(seed)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            for tensor in (each.weight, each.running_var):
                tensor.data.copy_(torch.rand(len(tensor), generator=rng) + 0.3)
            for tensor in (each.bias, each.running_mean):
                tensor.data.copy_(torch.randn(len(tensor), generator=rng) * 0.2)
    return module.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return _used(resnet(depth=8))


def _graph(state: dict[str, torch.Tensor], name: str = "b.pt") -> WeightGraph:
    return from_state_dict(state, name)


def _kind(a: WeightGraph, b: WeightGraph) -> VerdictKind:
    return judge(compare(a, b)).kind


def _noisy(state: dict[str, torch.Tensor], size: float) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    return {
        key: x + size * x.std() * torch.randn(x.shape, generator=rng)
        if x.is_floating_point() and x.ndim > 1
        else x
        for key, x in state.items()
    }


def _folded(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a ResNet's weights with its norms in the convolutions before them."""
    state = dict(module.state_dict())
    for name, norm in module.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            own = f"{name}."
            conv = name.replace("bn", "conv") if "bn" in name else name[:-1] + "0"
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            state[f"{conv}.weight"] = state[f"{conv}.weight"] * factor.view(-1, 1, 1, 1)
            state[f"{conv}.bias"] = norm.bias - norm.running_mean * factor
            state = {key: x for key, x in state.items() if not key.startswith(own)}
    return {key: x.detach().clone() for key, x in state.items()}


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_network_is_identical_to_itself_and_every_tensor_is_told_once(name) -> None:
    graph = from_module(HAND_MADE[name]().eval())
    comparison = compare(graph, graph)
    assert judge(comparison).kind is VerdictKind.IDENTICAL
    assert sorted(x.a.key for x in comparison.tensors) == sorted(p.key for p in graph.params)


def test_no_tensor_is_lost_between_networks_of_different_kinds() -> None:
    graphs = [from_module(make().eval()) for make in HAND_MADE.values()]
    for a, b in zip(graphs, [*graphs[5:], *graphs[:5]], strict=True):
        comparison = compare(a, b)
        for graph, side in ((a, "a"), (b, "b")):
            told = [getattr(x, side).key for x in comparison.tensors]
            told += [p.key for layer in comparison.layers for p in getattr(layer, f"only_{side}")]
            assert sorted(told) == sorted(p.key for p in graph.params)
        verdict = judge(comparison)
        comparison_record(comparison, verdict)
        assert [verdict_line(comparison, verdict), *summary_lines(comparison, verdict)]


def test_names_and_order_are_form(network) -> None:
    state = network.state_dict()
    renamed = {f"x{i}.{key.rpartition('.')[2]}": x for i, (key, x) in enumerate(state.items())}
    comparison = compare(_graph(state, "a.pt"), _graph(dict(reversed(renamed.items()))))
    assert judge(comparison).kind is VerdictKind.SAME
    assert comparison.renamed == len(comparison.tensors)
    assert not any(x.permuted or x.relation.scaling for x in comparison.tensors)


def test_content_goes_before_names(network) -> None:
    state = dict(network.state_dict())
    one, other = (f"layer1.0.conv{i}.weight" for i in (1, 2))
    state[one], state[other] = state[other], state[one]
    comparison = compare(_graph(network.state_dict(), "a.pt"), _graph(state))
    assert judge(comparison).kind is VerdictKind.SAME
    assert {(x.a.key, x.b.key) for x in comparison.tensors if x.a.key != x.b.key} == {
        (one, other),
        (other, one),
    }


@pytest.mark.parametrize(("size", "kind"), [(0.0, VerdictKind.SAME), (0.1, VerdictKind.FINE_TUNED)])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_channels_in_another_order_are_found_where_one_network_says_its_connections(
    network, size, kind, is_swapped
) -> None:
    graph = from_module(network)
    groups = permutation_groups(graph)
    shuffled = permute(graph, random_permutations(groups, torch.Generator().manual_seed(1)), groups)
    plain = from_state_dict(_noisy(shuffled.state_dict(), size), "b.pt")
    pair = (plain, graph) if is_swapped else (graph, plain)
    comparison = compare(*pair)
    assert judge(comparison).kind is kind
    assert not [x for x in comparison.layers if x.change in ("replaced", "only_a", "only_b")]
    moved = [x for x in comparison.tensors if x.permuted]
    assert len(moved) > len(comparison.tensors) / 3
    if size:
        matrices = [x.relation.distance for x in comparison.tensors if len(x.a.shape) > 1]
        assert max(matrices) == pytest.approx(size, rel=0.1)


def test_folded_norms_are_the_same_weights_and_a_wrong_bias_is_not(network) -> None:
    folded = _folded(network)
    graph = from_module(network)
    comparison = compare(graph, _graph(folded))
    assert judge(comparison).kind is VerdictKind.SAME
    norms = [name for name, x in network.named_modules() if isinstance(x, nn.BatchNorm2d)]
    assert {x.name_a for x in comparison.layers if x.change == "folded"} == set(norms)
    assert judge(compare(_graph(folded), graph)).kind is VerdictKind.SAME
    wrong = {**folded, "conv1.bias": folded["conv1.bias"] + 0.1 * torch.randn(16)}
    found = compare(graph, _graph(wrong))
    assert judge(found).kind is VerdictKind.FINE_TUNED
    assert {x.name_a for x in found.layers if x.change not in ("equal", "folded")} == {"conv1"}


def test_factors_that_no_norm_explains_are_told(network) -> None:
    state = dict(network.state_dict())
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"] * 2
    assert _kind(_graph(network.state_dict(), "a.pt"), _graph(state)) is VerdictKind.SCALED


def test_removed_channels_are_pruning_and_added_ones_widening(network) -> None:
    graph = from_module(network)
    state = graph.state_dict()
    for group in permutation_groups(graph):
        keep = torch.randperm(group.size, generator=torch.Generator().manual_seed(group.size))
        keep = keep[: group.size - group.size // 4].sort().values
        for part in group.slices:
            size = state[part.key].shape[part.axis]
            assert (part.offset, part.length, part.repeat) == (0, size, 1)
            state[part.key] = state[part.key].index_select(part.axis, keep)
    narrow = _graph(state)
    assert _kind(graph, narrow) is VerdictKind.PRUNED
    assert _kind(narrow, graph) is VerdictKind.WIDENED
    comparison = compare(graph, narrow)
    assert {x.relation.change for x in comparison.tensors} == {"equal"}


def test_a_new_head_and_a_layer_in_front_leave_the_rest_the_same(network) -> None:
    state = network.state_dict()
    head = {**state, "linear.weight": torch.randn(4, 64), "linear.bias": torch.zeros(4)}
    comparison = compare(_graph(state, "a.pt"), _graph(head))
    assert judge(comparison).kind is VerdictKind.PARTIAL
    assert [x.name_a for x in comparison.layers if x.change != "equal"] == ["linear"]
    front = {"adapter.weight": torch.randn(3, 3, 3, 3), **state}
    comparison = compare(_graph(state, "a.pt"), _graph(front))
    assert judge(comparison).kind is VerdictKind.PARTIAL
    assert [(x.name_b, x.change) for x in comparison.layers if x.change != "equal"] == [
        ("adapter", "only_b")
    ]


def test_networks_of_one_architecture_from_other_draws_are_strangers() -> None:
    torch.manual_seed(1)
    one, other = (_used(resnet(depth=8), seed) for seed in (1, 2))
    comparison = compare(from_module(one), from_module(other))
    assert judge(comparison).kind is VerdictKind.UNRELATED
    assert judge(comparison).shared == 0


def test_running_statistics_alone_are_named() -> None:
    torch.manual_seed(0)
    network = _used(resnet(depth=8))
    other = copy_module(network)
    other.bn1.running_mean += 1
    comparison = compare(from_module(network), from_module(other))
    verdict = judge(comparison)
    assert "Only running statistics" in verdict_line(comparison, verdict)
    assert "statistics alone" in str(table_of_layers(comparison).rows)


def test_unread_weights_are_told_and_keep_two_files_from_being_identical(network) -> None:
    state = dict(network.state_dict())
    state["packed"] = torch.randint(-9, 9, (64, 64), dtype=torch.int32)
    graph = _graph(state)
    comparison = compare(graph, graph)
    if graph.missed:
        assert judge(comparison).kind is VerdictKind.SAME
        assert "could not be read" in " ".join(summary_lines(comparison, judge(comparison)))
    other = _graph({**state, "packed": state["packed"] + 1})
    assert judge(compare(graph, other)).kind is VerdictKind.SAME
    found = compare(graph, other)
    assert "no weights" in " ".join(summary_lines(found, judge(found)))


def test_small_published_networks_are_strangers_of_each_other(sane_data) -> None:
    folder = sane_data / "small_nets" / "alpha_beta_crown"
    states = [
        torch.load(folder / name, weights_only=True, map_location="cpu")
        for name in ("mnist_cnn_a_adv.model", "cifar_cnn_a_adv.model", "cifar_cnn_a_mix.model")
    ]
    graphs = [from_state_dict(x.get("state_dict", x), str(i)) for i, x in enumerate(states)]
    assert [_kind(x, y) for x, y in pairwise(graphs)] == [
        VerdictKind.UNRELATED,
        VerdictKind.UNRELATED,
    ]


def test_tables_stay_short_and_tell_all_layers_when_asked(network) -> None:
    state = small_cnn().state_dict()
    graph = _graph(network.state_dict(), "a.pt")
    comparison = compare(graph, _graph(_noisy(network.state_dict(), 0.05)))
    assert len(table_of_layers(comparison).rows) <= len(comparison.layers)
    assert len(table_of_layers(comparison, all_layers=True).rows) == len(comparison.layers)
    same = compare(_graph(state, "a.pt"), _graph(state))
    assert len(table_of_layers(same).rows) == 1
