"""Kinds, roles, axes and groups of a file's layers, from their tensors' shapes: as in the module."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from networks import HAND_MADE
from torch import nn

from sane_plugins.architectures import import_torchvision, mlp, resnet, small_cnn, vit, wide_cnn
from sane_plugins.formats import from_state_dict
from sane_plugins.generation.cross_architecture import plan_expansion
from sane_plugins.weights import WeightGraph, from_module

# Names of libraries' networks, and the least share of values that files tell as modules do.
TORCHVISION = {
    "resnet18": 1.0,
    "resnext50_32x4d": 1.0,
    "mobilenet_v2": 1.0,
    "mobilenet_v3_small": 1.0,
    "efficientnet_b0": 1.0,
    "densenet121": 1.0,
    "shufflenet_v2_x0_5": 1.0,
    "regnet_y_400mf": 1.0,
    "convnext_tiny": 1.0,
    "vit_b_16": 1.0,
    "swin_t": 1.0,
    "googlenet": 1.0,
    "squeezenet1_0": 1.0,
}
TIMM = {
    "vit_tiny_patch16_224": 1.0,
    "efficientnet_lite0": 1.0,
    "tf_efficientnet_b0": 1.0,
    "convnext_atto": 1.0,
    "mobilenetv3_small_050": 1.0,
    "nfnet_l0": 1.0,
    "hrnet_w18_small": 0.99,
    "fastvit_t8": 0.98,
}


def _generator() -> nn.Module:
    parts = []
    for one, other in ((100, 64), (64, 32)):
        parts += [nn.ConvTranspose2d(one, other, 4, bias=False), nn.BatchNorm2d(other), nn.ReLU()]
    return nn.Sequential(*parts, nn.ConvTranspose2d(32, 3, 4, bias=False), nn.Tanh())


def _multiplied_depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, (1, 16), bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, (9, 1), groups=8, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, (1, 8), groups=16, bias=False),
        nn.Conv2d(16, 16, 1),
    )


def _slopes() -> nn.Module:
    first = (nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 16, 3, bias=False))
    return nn.Sequential(*first, nn.BatchNorm2d(16), nn.PReLU(16), nn.PReLU(), nn.Conv2d(16, 4, 1))


def _language_model() -> nn.Module:
    layers = {"tokens": nn.Embedding(99, 12), "places": nn.Embedding(7, 12)}
    layers |= {"attention": nn.MultiheadAttention(12, 2), "norm": nn.RMSNorm(12)}
    layers |= {"fused": nn.Linear(12, 36, bias=False), "back": nn.Linear(12, 12, bias=False)}
    return nn.ModuleDict(layers | {"head": nn.Linear(12, 99, bias=False)})


def _recurrent() -> nn.Module:
    layers = {"table": nn.Embedding(50, 12), "memory": nn.LSTM(12, 20, 2, bidirectional=True)}
    return nn.ModuleDict(layers | {"gates": nn.GRU(40, 8), "head": nn.Linear(8, 5)})


class NormAndActivation(nn.BatchNorm2d):
    """A norm of its own class, as timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return torch.relu(x)


class Untraced(nn.Module):
    """A norm that no trace enters, by roles and shapes alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(channels)) for _ in range(2))
        self.register_buffer("running_mean", torch.rand(channels))
        self.register_buffer("running_var", torch.rand(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else x * self.weight[:, None, None]


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    **HAND_MADE,
    "small cnn": small_cnn,
    "wide cnn": wide_cnn,
    "mlp": mlp,
    "resnet": partial(resnet, depth=20),
    "vit": vit,
    "generator": _generator,
    "multiplied depthwise": _multiplied_depthwise,
    "slopes": _slopes,
    "language model": _language_model,
    "recurrent": _recurrent,
    "plain mlp": lambda: nn.Sequential(
        nn.Linear(10, 32, bias=False), nn.ReLU(), nn.Linear(32, 3, bias=False)
    ),
    "sequences": lambda: nn.Sequential(
        nn.Conv1d(4, 8, 3), nn.GroupNorm(2, 8), nn.Conv1d(8, 8, 3, groups=4), nn.Conv1d(8, 6, 1)
    ),
    "volumes": lambda: nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 8, 3)
    ),
    "own norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), NormAndActivation(8), nn.Conv2d(8, 4, 1)),
    "untraced norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Untraced(8), nn.Conv2d(8, 4, 1)),
    "matrices of Conv1D": lambda: nn.Sequential(nn.Linear(6, 8), Transposed(8, 5)),
}


class Transposed(nn.Module):
    """A linear layer whose matrix has its inputs first, as GPT-2's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


def _agreement(module: nn.Module) -> float:
    """Return the share of a module's values that its state dict tells alike."""
    graph = from_module(module)
    wanted = _told(graph)
    found = _told(from_state_dict(graph.state_dict(), "test", ties=graph.ties))
    sizes = {param.key: param.size for param in graph.params}
    return sum(sizes[key] for key in wanted if found.get(key) == wanted[key]) / graph.size


def _told(graph: WeightGraph) -> dict[str, tuple]:
    """Return what is told of each tensor; the groups of a group norm are in no shape."""
    return {
        param.key: (layer.kind, param.role, param.axis, layer.groups * (layer.kind != "norm"))
        for layer in reversed(graph.layers)
        for param in layer.params
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_tells_what_its_module_does(name: str) -> None:
    torch.manual_seed(0)
    assert _agreement(NETWORKS[name]()) == 1


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_file_of_torchvision_tells_what_its_module_does(name: str) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    models = import_torchvision().models
    with torch.device("cpu" if "regnet" in name else "meta"):
        options = {"init_weights": False} if name == "googlenet" else {}
        module = models.get_model(name, weights=None, **options)
    assert _agreement(module) >= TORCHVISION[name]


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", TIMM)
def test_a_file_of_timm_tells_what_its_module_does(name: str) -> None:
    import sane_timm

    with torch.device("meta"):
        module = sane_timm.sane_build(f"timm:{name}", 7)
    assert _agreement(module) >= TIMM[name]


def test_no_norm_is_a_lone_parameter_whatever_its_class() -> None:
    for name in ("own norm", "untraced norm"):
        layers = [x for x in from_module(NETWORKS[name]()).layers if len(x.params) == 4]
        assert [layer.kind for layer in layers] == ["norm"]
        assert {p.role for p in layers[0].params} == {
            "scale",
            "shift",
            "running_mean",
            "running_var",
        }


def test_files_with_names_of_their_own_have_no_kinds() -> None:
    arrays = {"W1": torch.randn(4, 3), "b1": torch.randn(4), "W2": torch.randn(2, 4)}
    assert {layer.kind for layer in from_state_dict(arrays, "test").layers} == {"unknown"}


def test_sorted_names_still_tell_depthwise_and_grouped_kernels() -> None:
    torch.manual_seed(0)
    names = ("stem", "narrow", "deep", "wide", "parts", "other", "out")
    layers = (
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 32, 1),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.Conv2d(32, 64, 1),
        nn.Conv2d(64, 64, 3, groups=8),
        nn.Conv2d(64, 64, 3, groups=8),
        nn.Conv2d(64, 5, 1),
    )
    state = nn.ModuleDict(dict(zip(names, layers, strict=True))).state_dict()
    graph = from_state_dict({key: state[key] for key in sorted(state)}, "test")
    groups = {layer.name: layer.groups for layer in graph.layers if layer.params}
    assert groups["deep"] == 32
    assert groups["stem"] == groups["narrow"] == groups["wide"] == groups["out"] == 1


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        (small_cnn, wide_cnn),
        (partial(resnet, depth=20), partial(resnet, depth=32)),
        (partial(resnet, depth=8), partial(resnet, depth=14, width=32)),
    ],
)
def test_a_file_is_the_prompt_that_its_module_is(prompt: Callable, target: Callable) -> None:
    torch.manual_seed(0)
    module, graph = from_module(prompt()), from_module(target())
    pairs = _pairs(module, graph)
    assert pairs.keys() == {param.key for param in graph.params}
    assert _pairs(from_state_dict(module.state_dict(), "test"), graph) == pairs


def _pairs(prompt: WeightGraph, target: WeightGraph) -> dict[str, str]:
    """Return the prompt's tensor for each of the target's."""
    found = plan_expansion(prompt, target, frozenset())
    assert found is not None
    return {mapping.param.key: mapping.source.key for mapping in found.mappings}
