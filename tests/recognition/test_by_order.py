"""A file whose names are nobody's is recognised by the order of its layers, or not at all."""

import hashlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from sane_plugins import Host, SourceError
from sane_plugins.formats import from_state_dict
from sane_plugins.recognition import NamedBuilder, build_on_meta, find_by_order, with_layers_built
from sane_plugins.symmetry import permutation_groups, permute, random_permutations

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
State = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


def renamed(state: State) -> dict[str, torch.Tensor]:
    """Return tensors under names that nobody uses, of the same modules and attributes."""

    def of(key: str) -> str:
        *modules, attribute = key.split(".")
        other = [f"m{hashlib.sha256(part.encode()).hexdigest()[:8]}" for part in modules]
        return ".".join([*other, attribute])

    return {of(key): value for key, value in state.items()}


def on_meta(build: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    return renamed(build_on_meta(build).state_dict())


@pytest.mark.parametrize(
    "source",
    ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x1_0"],
)
@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_a_renamed_copy_is_recognised(source: str, prefix: str, host: Host) -> None:
    state = on_meta(lambda: host.build(source, 13))
    graph = host.open({prefix + key: value for key, value in state.items()})
    assert source in graph.recognized
    assert graph.has_topology
    assert "in their order" in graph.notes[0]
    assert {p.key.removeprefix(prefix) for p in graph.params} == {
        key for key in state if not key.endswith("num_batches_tracked")
    }
    assert {layer.name for layer in graph.layers if layer.params} <= {
        key.rpartition(".")[0].removeprefix("module.") for key in [*graph.tensors]
    }


def test_its_channels_may_change_places_as_the_networks_may(host: Host) -> None:
    rng = torch.Generator().manual_seed(0)
    module = host.build("torchvision:mobilenet_v3_small", 5).eval()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and "running" in name:
            tensor.uniform_(0.5, 1.5, generator=rng)
    images = torch.randn(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        expected = module(images)
    graph = host.open(renamed(module.state_dict()))
    groups = permutation_groups(graph)
    assert len(groups) > 10
    permuted = permute(graph, random_permutations(groups, rng), groups)
    back = dict(zip(renamed(module.state_dict()), module.state_dict(), strict=True))
    assert any(
        not torch.equal(x, module.state_dict()[back[key]]) for key, x in permuted.tensors.items()
    )
    module.load_state_dict({back[key]: x for key, x in permuted.tensors.items()})
    with torch.no_grad():
        assert torch.allclose(module(images), expected, atol=1e-4)


def sorted_by_name(state: State) -> State:
    return dict(sorted(state.items()))


def with_one_length_changed(state: State) -> State:
    key = [k for k, x in state.items() if x.ndim == 4][3]
    return {**state, key: state[key].new_empty((state[key].shape[0] + 1, *state[key].shape[1:]))}


def with_two_layers_exchanged(state: State) -> State:
    keys = [*state]
    one, other = (i for i, k in enumerate(keys) if state[k].ndim == 4 and i in (0, 6))
    keys[one], keys[other] = keys[other], keys[one]
    return {key: state[key] for key in keys}


def with_another_attribute(state: State) -> State:
    return {k.replace("running_mean", "moving_mean"): x for k, x in state.items()}


def with_shifted_blocks(state: State) -> State:
    """Return the same layers in blocks that begin one layer later: another network may be built so."""
    layers = [*dict.fromkeys(key.rpartition(".")[0] for key in state)]
    names = {
        layer: f"{i}" if i < 2 else f"block{(i - 2) // 4}.{i}" for i, layer in enumerate(layers, 1)
    }
    return {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": x for k, x in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        sorted_by_name,
        with_one_length_changed,
        with_two_layers_exchanged,
        with_another_attribute,
        with_shifted_blocks,
    ],
)
def test_what_differs_is_not_recognised(change: Callable[[State], State], host: Host) -> None:
    state = on_meta(lambda: host.build("torchvision:resnet18", 7))
    graph = from_state_dict(change(state), "file")
    assert find_by_order(graph, host.build) == []
    assert not host.open(change(state)).recognized


def test_few_tensors_say_nothing(host: Host) -> None:
    graph = from_state_dict(on_meta(lambda: host.build("torchvision:alexnet", 7)), "file")
    assert find_by_order(graph, host.build) == []


def test_a_library_that_is_missing_recognises_nothing(host: Host) -> None:
    def build(name: str, _: int | None) -> nn.Module:
        raise SourceError(name, "it is not installed", "it is needed", "install it")

    state = on_meta(lambda: host.build("torchvision:resnet18", 7))
    assert find_by_order(from_state_dict(state, "file"), build) == []


def test_what_a_user_names_needs_no_names_in_the_file() -> None:
    def build(classes: int | None) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes or 9)
        )

    module = build(5)
    graph = with_layers_built(
        from_state_dict(renamed(module.state_dict()), "file"), [NamedBuilder("mine", build)]
    )
    assert graph.recognized == ("mine",)
    assert [layer.kind for layer in graph.layers if layer.params] == ["conv", "linear"]
    assert "by the order of its layers" in graph.notes[0]
