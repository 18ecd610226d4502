"""A file of names and shapes alone gets the layers of the architecture that it is of."""

import random
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sane_plugins import Host
from sane_plugins.architectures import mlp, resnet, small_cnn, vit, wide_cnn
from sane_plugins.recognition import (
    build_on_meta,
    find_candidates,
    indexed_architectures,
    topology_digest,
)
from sane_plugins.symmetry import permutation_groups
from sane_plugins.weights import WeightGraph, from_module

WRAPPERS = ("", "module.", "_orig_mod.", "module._orig_mod.", "model.")


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


def _require(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def _timm() -> ModuleType:
    _require("timm")
    from sane_timm.build import import_timm

    return import_timm()


def _on_meta(build: Callable[[], nn.Module], prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in build_on_meta(build).state_dict().items()}


def _layers(graph: WeightGraph, prefix: str = "") -> list[object]:
    return [
        (
            layer.name,
            layer.kind,
            layer.inputs,
            layer.groups,
            layer.dims,
            [(p.key.removeprefix(prefix), p.role, p.shape, p.axis) for p in layer.params],
        )
        for layer in graph.layers
    ]


OURS = {
    "small_cnn": lambda: small_cnn(channels_in=3, classes=7),
    "small_cnn,grey": small_cnn,
    "wide_cnn": lambda: wide_cnn(classes=3, factor=3),
    "mlp": lambda: mlp(width=9, depth=3, classes=2),
    "mlp,colours": lambda: mlp(channels_in=3, size=16),
    "resnet": lambda: resnet(depth=14, width=8, classes=100),
    "resnet,conv": lambda: resnet(channels_in=1, shortcut="conv"),
    "vit": lambda: vit(patch=4, depth=1, width=12),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_our_families_of_any_width_and_depth(name: str, prefix: str, host: Host, tmp_path) -> None:
    network = OURS[name]()
    file = tmp_path / "net.safetensors"
    save_file({prefix + key: value for key, value in network.state_dict().items()}, file)
    graph, module = host.open(file), from_module(network)
    assert graph.recognized[0].partition(",")[0] == name.partition(",")[0]
    assert _layers(graph, prefix) == _layers(module)
    assert graph.has_topology
    assert not [note for note in graph.notes if note.startswith("no topology")]
    for (param, value), (_, other) in zip(graph.items(), module.items(), strict=True):
        assert torch.equal(value, other), param.key


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_a_vit_may_change_the_same_channels_for_any_number_of_heads(heads: int) -> None:
    network, other = from_module(vit(heads=heads)), from_module(vit(heads=12))
    assert permutation_groups(network) == permutation_groups(other)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "swin_t",
        "r3d_18",
        "googlenet,aux=1",
        "lraspp_mobilenet_v3_large",
    ],
)
def test_torchvision_for_other_classes(name: str, host: Host) -> None:
    _require("torchvision")
    source = f"torchvision:{name}"
    graph = host.open(_on_meta(lambda: host.build(source, 13), "module._orig_mod."))
    assert source in graph.recognized
    assert f"recognised as {source.replace(':', ' ').partition(',')[0]}" in graph.notes[0]
    expected = from_module(build_on_meta(lambda: host.build(source, 13)))
    assert _layers(graph, "module._orig_mod.") == _layers(expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_torchvision_for_other_channels(channels: int, host: Host) -> None:
    _require("torchvision")
    graph = host.open(_on_meta(lambda: host.build(f"torchvision:densenet121,channels={channels}")))
    candidate = find_candidates(graph)[0]
    assert candidate.name == "torchvision:densenet121"
    assert (candidate.counts.classes, candidate.counts.channels) == (1000, channels)


@pytest.mark.parametrize(
    ("name", "classes", "options"),
    [
        ("efficientnet_lite0", 3, {}),
        ("efficientnet_lite0", 1000, {"in_chans": 1}),
        ("convnext_atto", 0, {}),
        ("vit_tiny_patch16_224", 10, {"in_chans": 12}),
        ("deit_tiny_distilled_patch16_224", 10, {}),
    ],
)
def test_timm(name: str, classes: int, options: dict[str, int], host: Host) -> None:
    timm = _timm()
    build = lambda: timm.create_model(name, num_classes=classes, **options)  # noqa: E731
    graph = host.open(_on_meta(build, "module._orig_mod."))
    assert f"timm:{name}" + ",classes=0" * (classes == 0) in graph.recognized
    assert _layers(graph, "module._orig_mod.") == _layers(from_module(build_on_meta(build)))


def test_where_names_and_shapes_are_shared_all_are_told(host: Host) -> None:
    _require("torchvision")
    graph = host.open(_on_meta(lambda: host.build("torchvision:resnet50", 10)))
    assert graph.recognized[0] == "torchvision:resnet50"
    assert "timm:resnet50" in graph.recognized
    assert "timm resnet50" in graph.notes[0]
    assert graph.has_topology


def test_without_the_library_kinds_are_known_and_a_note_says_how_to_install_it(monkeypatch) -> None:
    timm = _timm()
    state = _on_meta(lambda: timm.create_model("regnetx_002", num_classes=5))
    monkeypatch.setattr("sane_timm.build.find_spec", lambda _: None)
    graph = Host.installed().open(state)
    assert graph.recognized == ("timm:regnetx_002",)
    assert "pip install 'sane-plugins[timm]'" in graph.notes[0]
    kinds = {layer.name: (layer.kind, layer.groups) for layer in graph.layers}
    assert kinds["stem.conv"] == ("conv", 1)
    assert kinds["s2.b1.conv2.conv"] == ("conv", 7)
    assert kinds["head.fc"] == ("linear", 1)


def _damaged(state: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """Return a state dict with one name or one length changed, or a tensor too many or too few."""
    state = {key: value for key, value in state.items() if value.is_floating_point()}
    key = rng.choice([key for key, value in state.items() if value.ndim])
    way = rng.randrange(4)
    tensor = state.pop(key)
    if way == 0:
        state[f"{key}x"] = tensor
    elif way == 1:
        state |= {key: tensor, f"{key}.more": torch.empty(3, device="meta")}
    elif way == 2:
        state[key] = torch.empty(tensor.shape[0] + 1, *tensor.shape[1:], device="meta")
    return state


@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "torchvision:vit_b_16", "resnet", "vit", "mlp"]
)
def test_what_differs_in_one_thing_is_not_recognised(name: str, host: Host) -> None:
    if ":" in name:
        _require("torchvision")
    state, rng = _on_meta(lambda: host.build(name, 10)), random.Random(name)
    for _ in range(20):
        graph = host.open(_damaged(state, rng))
        assert graph.recognized == ()


def test_a_length_of_classes_that_others_contradict_is_not_recognised(host: Host) -> None:
    _require("torchvision")
    state = _on_meta(lambda: host.build("torchvision:resnet18", 10))
    state["fc.bias"] = torch.empty(11, device="meta")
    assert host.open(state).recognized == ()


def test_the_index_is_small_and_names_each_architecture_once() -> None:
    names = [x.source for x in indexed_architectures()]
    assert len(names) == len({*names})
    assert sum(name.startswith("torchvision:") and "," not in name for name in names) == 121
    assert sum(name.startswith("timm:") and "," not in name for name in names) > 1300


def test_the_same_connections_have_the_same_digest() -> None:
    one = from_module(resnet(depth=8, act="relu"))
    assert topology_digest(one) == topology_digest(from_module(resnet(depth=8, act="tanh")))
    assert topology_digest(one) != topology_digest(from_module(resnet(depth=8, shortcut="conv")))
