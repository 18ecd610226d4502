"""What torch's exporters make of a network: the same tokens as the network itself."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from onnxfiles import export, export_and_optimize, opened
from torch import nn

from sane_plugins.weights import Tokens, WeightGraph, from_module, tokenize

sane_torchvision = pytest.importorskip("sane_torchvision")
if find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

# Its networks, and the side of the images that they are exported with.
SIZES = {
    "efficientnet_b0": 64,
    "googlenet": 64,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64,
}


def _named(name: str) -> nn.Module:
    models = sane_torchvision.import_torchvision().models
    if name == "googlenet":
        return models.googlenet(weights=None, aux_logits=False, init_weights=False)
    return getattr(models, name)(weights=None)


def _alexnet() -> nn.Module:
    """Build AlexNet with narrow linear layers: exporters and files only copy their 58 million weights."""
    network = _named("alexnet")
    for i, sizes in ((1, (9216, 64)), (4, (64, 64)), (6, (64, 1000))):
        network.classifier[i] = nn.Linear(*sizes)
    return network


def _densenet() -> nn.Module:
    """Build a DenseNet of four dense blocks and their three transitions, with few layers in each."""
    models = sane_torchvision.import_torchvision().models
    return models.DenseNet(32, (3, 4, 4, 3), 64)


def _vit() -> nn.Module:
    models = sane_torchvision.import_torchvision().models
    return models.VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=7)


def _convnext() -> nn.Module:
    models = sane_torchvision.import_torchvision().models
    setting = models.convnext.CNBlockConfig
    return models.ConvNeXt([setting(16, 24, 2), setting(24, None, 2)], num_classes=7)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (partial(_named, name), size) for name, size in SIZES.items()},
    "alexnet": (_alexnet, 224),
    "densenet": (_densenet, 64),
    "vit": (_vit, 32),
    "convnext": (_convnext, 64),
}
# Attention, and layers that are used in another order than they are made in.
OTHER_ORDER = ("vit", "convnext")
# These ways fold batch norms; the others leave them.
FOLDING = ("script", "dynamo")


def _exported(module: nn.Module, example: torch.Tensor, folder: Path) -> dict[str, Path]:
    """Export by both exporters, as they do by default and with nothing folded or optimised."""
    ways = ("script", "script, as in training", "dynamo", "dynamo, unoptimised")
    paths = {way: folder / f"{i}.onnx" for i, way in enumerate(ways)}
    folded, as_trained, optimized, plain = paths.values()
    options = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    export(copy.deepcopy(module), example, folded, False, do_constant_folding=True)
    export(copy.deepcopy(module), example, as_trained, False, **options)
    export_and_optimize(copy.deepcopy(module), example, plain, optimized)
    return paths


def _trained(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a network whose tensors all differ: exporters merge equal ones, such as fresh biases."""
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    module = build().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.std() < 1e-6:
                tensor.uniform_(0.5, 1.5)
    return module, torch.randn(1, 3, size, size)


def _fused(module: nn.Module) -> WeightGraph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports deprecated parts of torch
        from torch.fx.experimental.optimization import fuse

        return from_module(fuse(copy.deepcopy(module)))


def _is_same(one: Tokens, other: Tokens) -> bool:
    """Tell whether tokens agree; folding batch norms is rounded by whoever does it."""
    return (
        one.values.shape == other.values.shape
        and torch.equal(one.positions, other.positions)
        and torch.equal(one.mask, other.mask)
        and torch.allclose(one.values, other.values, rtol=1e-4, atol=1e-6)
    )


def _sorted(graph: WeightGraph) -> list[tuple[int, float]]:
    """Return each tensor's size and sum, save single numbers, which may be the computation's."""
    found = [
        (p.size, round(float(t.double().abs().sum()), 2)) for p, t in graph.items() if p.size > 1
    ]
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_export_has_the_tokens_of_the_module(name: str, tmp_path: Path) -> None:
    module, example = _trained(name)
    plain = from_module(module)
    has_norms = any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    folded = _fused(module) if has_norms else plain
    for way, path in _exported(module, example, tmp_path).items():
        found, expected = opened(path), folded if way in FOLDING else plain
        assert found.coverage == 1
        if name in OTHER_ORDER:
            assert _sorted(found) == _sorted(expected), way
        else:
            assert _is_same(tokenize(found, 64), tokenize(expected, 64)), way
        if has_norms and expected is folded:
            assert any("folded" in note for note in found.notes), way
