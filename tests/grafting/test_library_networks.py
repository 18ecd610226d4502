"""Units, matching and grafts on networks of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from graftnets import trained
from torch import nn

from sane_plugins.architectures import import_torchvision
from sane_plugins.errors import SaneError
from sane_plugins.grafting import NetworkUnits, graft, match, read_units
from sane_plugins.weights import load_nearest

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
try:
    models = import_torchvision().models
except (ImportError, SaneError):
    pytest.skip("torchvision is not installed", allow_module_level=True)


@cache
def units_of(name: str) -> NetworkUnits:
    """Return the units of a torchvision network, or of a timm network."""
    library, _, rest = name.rpartition(":")
    if library:
        timm = pytest.importorskip("timm")
        return read_units(timm.create_model(rest, num_classes=10), IMAGES)
    return read_units(getattr(models, name)(num_classes=10), IMAGES)


def test_gates_shortcuts_and_residual_sums_are_found() -> None:
    units = units_of("regnet_y_400mf").units
    assert sum(unit.ends_gate for unit in units) == 16
    assert sum(unit.place == "gate" for unit in units) == 32
    assert sum(unit.place == "shortcut" for unit in units) == 4
    assert sum(unit.ends_identity_block for unit in units) == 12


def test_what_belongs_to_a_unit_is_found_behind_it() -> None:
    first = units_of("mobilenet_v2").units[0]
    assert first.norm is not None
    assert first.norm.has_statistics
    assert first.activation is not None
    probe = torch.tensor([-1.0, 3.0, 9.0])
    assert first.activation(probe).tolist() == [0, 3, 6]
    assert (first.grid, first.stride, first.halvings) == ((32, 32), 2, 1)


def test_layer_scales_are_found() -> None:
    pytest.importorskip("timm")
    scaled = [unit for unit in units_of("timm:convnext_atto").units if unit.scale]
    assert len(scaled) == 12
    assert all(unit.ends_identity_block for unit in scaled)


def test_blocks_that_halve_the_images_meet() -> None:
    pytest.importorskip("timm")
    source, target = units_of("timm:efficientnet_lite0"), units_of("mobilenet_v2")
    pairs = match(source, target).pairs
    assert pairs.keys() == target.by_name.keys()
    for unit in target.units:
        source_unit = pairs[unit.name].source
        assert (source_unit.kind, source_unit.stride) == (unit.kind, unit.stride)
        assert source_unit.halvings == unit.halvings


def test_a_dense_block_gets_a_composed_expansion_and_the_projection() -> None:
    pytest.importorskip("timm")
    pairs = match(units_of("timm:efficientnet_lite0"), units_of("resnet18")).pairs
    kinds = [[unit.kind for unit in pairs[f"layer3.1.conv{i}"].sources] for i in (1, 2)]
    assert kinds == [["conv", "depthwise"], ["conv"]]


def test_alike_networks_are_more_similar() -> None:
    pytest.importorskip("timm")
    source = units_of("timm:efficientnet_lite0")
    names = ("mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x1_0", "resnet50")
    similarities = [match(source, units_of(name)).similarity for name in names]
    assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"]
)
def test_a_network_of_a_library_in_its_own_architecture_is_itself(name: str) -> None:
    require_itself(lambda: getattr(models, name)(num_classes=10))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["densenet121", "efficientnet_b0", "regnet_y_400mf", "resnext50_32x4d", "vgg11_bn"]
)
def test_a_large_network_in_its_own_architecture_is_itself(name: str) -> None:
    require_itself(lambda: getattr(models, name)(num_classes=10))


@pytest.mark.parametrize("name", ["convnext_atto", "resnetv2_18"])
def test_a_network_of_timm_in_its_own_architecture_is_itself(name: str) -> None:
    timm = pytest.importorskip("timm")
    require_itself(lambda: timm.create_model(name, num_classes=10))


@torch.no_grad()
def require_itself(build: Callable[[], nn.Module]) -> None:
    """Require that a graft of a network makes another one of its architecture compute just the same."""
    source, target = trained(build()), trained(build(), 1)
    ours, theirs = read_units(source, IMAGES), read_units(target, IMAGES)
    weights = graft(ours, theirs, match(ours, theirs), torch.Generator().manual_seed(0))
    load_nearest(target, theirs.graph.replace({**weights.lent, **weights.adjusted}))
    assert torch.equal(target.eval()(IMAGES), source(IMAGES))


def test_scales_of_branches_are_small_unless_a_whole_block_is_lent() -> None:
    pytest.importorskip("timm")
    source, target = units_of("timm:efficientnet_lite0"), units_of("timm:convnext_atto")
    weights = graft(source, target, match(source, target), torch.Generator().manual_seed(0))
    keys = [unit.scale for unit in target.units if unit.scale]
    assert all(weights.lent[key].allclose(torch.tensor(0.1)) for key in keys)
    itself = graft(target, target, match(target, target), torch.Generator().manual_seed(0))
    assert all(torch.equal(itself.lent[key], target.graph.tensors[key]) for key in keys)
