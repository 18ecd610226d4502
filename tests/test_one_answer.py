"""One network gives one answer: as a module, in files of every form, with channels in any order."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import onnxfiles
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from sane_plugins.architectures import mlp, resnet, small_cnn, vit
from sane_plugins.features import EncodeOptions, SaneEncoder, StatisticsEncoder, structure
from sane_plugins.formats import from_state_dict, open_file
from sane_plugins.generation import connected_like
from sane_plugins.host import Host
from sane_plugins.properties import embedded_heads
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import WeightGraph, from_module

RELATIVE = 1e-4
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[0][:, -1])


class Custom(nn.Module):
    """Layers of its own making: bias before weight, a norm of parameters, a standardised convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(12, 1, 1))
        self.bias, self.weight = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12, 3, 3, 3))
        self.shift, self.scale = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        x = functional.conv2d(x, weight, self.bias) * self.gain
        x = functional.layer_norm(x.permute(0, 2, 3, 1), (12,), self.scale, self.shift)
        return self.head(x.mean((1, 2)))


class Branches(nn.Module):
    """Three branches of the same shapes are summed; two more are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.d, self.e, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (self.a(x) + self.b(x)) + self.c(x)
        return self.head(torch.cat([self.d(x), self.e(x)], 1))


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def _library() -> ModuleType:
    if not find_spec("torchvision"):
        pytest.skip("needs torchvision")
    return pytest.importorskip("sane_torchvision").import_torchvision()


def _torchvision(make: Callable[[object], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make(_library().models)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        _library()  # which timm imports
        return pytest.importorskip("timm").create_model(name, num_classes=10, **options)

    return make


def _efficientnet(models) -> nn.Module:
    """Build EfficientNet-B0 with a quarter of its channels."""
    blocks = (
        (1, 3, 1, 32, 16, 1),
        (6, 3, 2, 16, 24, 2),
        (6, 5, 2, 24, 40, 2),
        (6, 3, 2, 40, 80, 3),
        (6, 5, 1, 80, 112, 3),
        (6, 5, 2, 112, 192, 4),
        (6, 3, 1, 192, 320, 1),
    )
    config = models.efficientnet.MBConvConfig
    return models.EfficientNet([config(*x, width_mult=0.25) for x in blocks], 0.2, num_classes=10)


def _googlenet(models) -> nn.Module:
    """Build GoogLeNet with a quarter of its channels."""
    parts = import_module("torchvision.models.googlenet")  # `models.googlenet` is the function

    def convolution(before: int, after: int, **options: object) -> nn.Module:
        return parts.BasicConv2d(before if before == 3 else before // 4, after // 4, **options)

    inception = partial(parts.Inception, conv_block=convolution)
    blocks = [convolution, inception, parts.InceptionAux]
    network = models.GoogLeNet(10, aux_logits=False, init_weights=False, blocks=blocks)
    network.fc = nn.Linear(256, 10)
    return network


def _resnet(models) -> nn.Module:
    """Build ResNet-18 with a quarter of its channels in all blocks."""

    class Narrow(models.ResNet):
        def _make_layer(self, block, planes, *arguments, **options) -> nn.Module:
            return super()._make_layer(block, planes // 4, *arguments, **options)

    network = Narrow(models.resnet.BasicBlock, [2, 2, 2, 2])
    network.fc = nn.Linear(128, 10)
    return network


def _convnext(models) -> nn.Module:
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(16, 32, 2), block(32, None, 2)], num_classes=10)


FAMILIES: Mapping[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "small cnn": (lambda: small_cnn(3), IMAGES[:, :, :32, :32]),
    "mlp": (lambda: mlp(size=8, width=32, depth=3), torch.rand(2, 1, 8, 8)),
    "resnet-20": (lambda: resnet(width=8), IMAGES[:, :, :32, :32]),
    "vgg": (_vgg, IMAGES),
    "vit": (vit, torch.rand(2, 1, 28, 28)),
    "lstm": (Recurrent, torch.rand(2, 5, 8)),
    "custom layers": (Custom, IMAGES[:, :, :8, :8]),
    "branches": (Branches, IMAGES[:, :, :8, :8]),
    "vision transformer": (
        _torchvision(lambda m: m.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)),
        IMAGES[:, :, :32, :32],
    ),
    "timm vit": (
        _timm("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=4),
        IMAGES[:, :, :32, :32],
    ),
    "convnext": (_torchvision(_convnext), IMAGES),
    "densenet": (
        _torchvision(lambda m: m.DenseNet(8, (2, 3, 2), 16, num_classes=10)),
        IMAGES,
    ),
}
# Narrow: answers depend on connections, not on widths, and take a second for each million weights.
LARGE: Mapping[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "resnet-18": (_torchvision(_resnet), IMAGES),
    "mobilenet": (
        _torchvision(lambda m: m.mobilenet_v2(num_classes=10, width_mult=0.25)),
        IMAGES,
    ),
    "efficientnet": (_torchvision(_efficientnet), IMAGES),
    "efficientnet of timm": (_timm("tinynet_e"), IMAGES),
    "mobilenet v3": (
        _torchvision(lambda m: m.mobilenet_v3_small(num_classes=10, width_mult=0.25)),
        IMAGES,
    ),
    "shufflenet": (_torchvision(lambda m: m.shufflenet_v2_x0_5(num_classes=10)), IMAGES),
    "googlenet": (_torchvision(_googlenet), IMAGES),
}
# The newer exporter writes ConvNeXt's pooled map as a Gather by 64 places, so that its channels are fixed.
CHANGED_BY_DYNAMO = ("convnext",)
# Module and export do not tell the same of what a tensor is (a computed weight, a norm of parameters),
# and places of the shipped SANE hold a tensor's role: what does not read the SANE must be the same.
ROLES_DIFFER = ("custom layers",)


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network in evaluation mode, whose norms do something, and an example of its input."""
    make, example = {**FAMILIES, **LARGE}[name]
    torch.manual_seed(0)
    module = make().eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in module.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                is_variance = key.endswith("running_var")
                tensor += 0.1 * torch.rand(tensor.shape, generator=rng) * (10 if is_variance else 1)
    return module, example


def shuffled(graph: WeightGraph, seed: int = 2) -> WeightGraph:
    groups = permutation_groups(graph)
    return permute(graph, random_permutations(groups, torch.Generator().manual_seed(seed)), groups)


def answers(graph: WeightGraph) -> dict[str, torch.Tensor]:
    """Return all that is said of a network."""
    options = EncodeOptions(precision="float32")
    kept = SaneEncoder().encode(graph, options)
    found = {"embedding": kept.embedding, "layers": kept.layers, "latents": kept.latents}
    features = {x.name: x.features(graph, options) for x in (SaneEncoder(), StatisticsEncoder())}
    read = {name: x.numpy() for name, x in features.items()} | {"structure": structure(graph)}
    for name, head in embedded_heads().items():
        x = head.estimate(read)
        values = [x.value, *x.interval] if hasattr(x, "interval") else [*x.probabilities.values()]
        found[name] = torch.tensor(values, dtype=torch.float64)
    return found | features


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        largest = float(value.abs().max())
        error = float((found[name] - value).abs().max())
        assert error <= RELATIVE * max(largest, 1e-6), (name, error, largest)


def in_files(module: nn.Module, graph: WeightGraph, folder: Path) -> dict[str, WeightGraph]:
    """Return the network as it is read from files of tensors, connected as it or the module says."""
    state = {key: x.clone().contiguous() for key, x in module.state_dict().items()}
    torch.save(state, folder / "net.pt")
    save_file(state, folder / "net.safetensors")
    host = Host.installed()
    files = {path.name: host.open(path) for path in folder.iterdir()}
    return {name: connected_like(x, graph, frozenset()) for name, x in files.items()}


@cache
def asked(name: str) -> tuple[nn.Module, torch.Tensor, WeightGraph, dict[str, torch.Tensor]]:
    """Return a network, an example of its input, its graph, and all that is said of it."""
    module, example = made(name)
    graph = from_module(module)
    return module, example, graph, answers(graph)


def is_same(one: WeightGraph, other: WeightGraph) -> bool:
    """Tell whether graphs agree bit for bit in all but their origin, and so must have one answer."""
    parts = ("layers", "untouched", "ties", "missed", "converted")
    return all(getattr(one, x) == getattr(other, x) for x in parts) and all(
        torch.equal(one.tensors[p.key], other.tensors[p.key]) for p in one.params
    )


def check_files(name: str, folder: Path) -> None:
    """Check files of tensors, and a network whose channels are in another order."""
    module, _, graph, expected = asked(name)
    read: list[WeightGraph] = [graph]
    for form in in_files(module, graph, folder).values():
        if not any(is_same(form, x) for x in read):
            assert_same(answers(form), expected)
            read.append(form)
    assert_same(answers(shuffled(graph)), expected)


def check_export(name: str, folder: Path, dynamo: bool) -> None:
    module, example, _, expected = asked(name)
    options = {"optimize": False} if dynamo else {"do_constant_folding": False}
    path = onnxfiles.export(module, example, folder / "net.onnx", dynamo, **options)
    names = [StatisticsEncoder.name] if name in ROLES_DIFFER else [*expected]
    assert_same(answers(onnxfiles.opened(path)), {key: expected[key] for key in names})


@pytest.mark.parametrize("name", FAMILIES)
def test_all_forms_of_a_network_give_one_answer(name: str, tmp_path) -> None:
    check_files(name, tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_of_a_network_gives_its_answer(name: str, tmp_path) -> None:
    check_export(name, tmp_path, dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in FAMILIES if x not in CHANGED_BY_DYNAMO])
def test_the_newer_exporter_gives_the_same_answer(name: str, tmp_path) -> None:
    check_export(name, tmp_path, dynamo=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_all_forms_of_a_larger_network_give_one_answer(name: str, tmp_path) -> None:
    check_files(name, tmp_path)
    for dynamo in (False, True):
        check_export(name, tmp_path, dynamo)


@pytest.mark.parametrize("name", ["small cnn", "resnet-20", "vit", "lstm", "branches"])
def test_files_of_unknown_networks_give_one_answer(name: str, tmp_path) -> None:
    module, _ = made(name)
    state = {key: x.clone() for key, x in module.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    expected = answers(from_state_dict(state, "in order"))
    assert_same(answers(from_state_dict(dict(sorted(state.items())), "sorted")), expected)
    assert_same(answers(open_file(tmp_path / "net.safetensors")), expected)
