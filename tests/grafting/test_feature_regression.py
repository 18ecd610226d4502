"""Layers fitted to a trained network's features: found exactly where that is possible."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from sane_plugins.grafting import condition
from sane_plugins.grafting.batchnorm import norms_in_training_mode
from sane_plugins.grafting.fitting import (
    LayerFit,
    PreparedNetwork,
    regress_features,
    residual_sums,
)


class Block(nn.Module):
    """A residual block, with a projection where the number of channels changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.spread, self.norm = nn.Conv2d(inputs, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, stride, 1, groups=12, bias=False)
        self.depth_norm = nn.BatchNorm2d(12)
        self.project, self.out_norm = nn.Conv2d(12, outputs, 1, groups=2), nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.depth_norm(self.depth(self.norm(self.spread(x)).relu())).relu()
        return nn.functional.relu(self.out_norm(self.project(h)) + self.shortcut(x), inplace=True)


def _network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 20),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(20, 4),
    )


NORMS = {"0": "1"} | {
    f"{block}.{layer}": f"{block}.{norm}"
    for block in (3, 4)
    for layer, norm in (("spread", "norm"), ("depth", "depth_norm"), ("project", "out_norm"))
}
LAYERS = [*NORMS, "4.shortcut", "7", "10"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(images: torch.Tensor) -> nn.Module:
    module = _network(0)
    condition(module, images, 1, len(images), torch.Generator().manual_seed(0))
    return module.eval()


def _regress(
    target: nn.Module, source: nn.Module, images: torch.Tensor, penalty: float, *but: str
) -> dict[str, float]:
    modules = dict(target.named_modules())
    fits = []
    for name in LAYERS:
        if name not in but:
            outputs = len(modules[name].weight)
            channels = torch.arange(outputs)
            fits.append(
                LayerFit(layer=name, source=name, channels=channels, signs=torch.ones(outputs))
            )
    with norms_in_training_mode(target):
        sums = residual_sums(target, images[:2])
    return regress_features(
        PreparedNetwork(module=target, images=images, norms=NORMS, sums=sums),
        PreparedNetwork(
            module=source, images=images, norms=NORMS, sums=residual_sums(source, images[:2])
        ),
        fits,
        [penalty],
        torch.Generator().manual_seed(0),
    )


@torch.no_grad()
def test_another_network_of_that_architecture_learns_to_compute_the_same(images, source) -> None:
    target = _network(1)
    explained = _regress(target, source, images, 1e-7)
    assert explained.keys() == {*LAYERS}
    assert min(explained.values()) > 0.999
    torch.testing.assert_close(target.eval()(images), source(images), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_what_the_projection_of_a_block_lacks_its_branch_makes_up_for(images, source) -> None:
    """Also where no layer of the source is known for it."""
    explained = _regress(_network(1), source, images, 1e-7, "4.shortcut")
    assert explained.keys() == {*LAYERS}


@torch.no_grad()
def test_a_layer_outside_of_the_fits_stays_and_what_comes_after_corrects_it(images, source) -> None:
    def error(module: nn.Sequential) -> float:
        return float((module.eval()[:4](images) - source[:4](images)).square().mean())

    target, alone = _network(1), _network(1)
    before = target[3].spread.weight.clone()
    _regress(target, source, images, 1e-7, "3.spread")
    _regress(alone, source, images, 1e-7, "3.spread", "3.depth", "3.project")
    assert torch.equal(target[3].spread.weight, before)
    assert error(target) < 0.6 * error(alone)


@torch.no_grad()
def test_it_is_the_same_each_time_and_leaves_modes_and_statistics_in_order(images, source) -> None:
    states = []
    for _ in range(2):
        target = _network(2).train()
        _regress(target, source, images, 0.3)
        assert target.training
        assert target[1].momentum == 0.1
        states.append(target.state_dict())
        evaluated = deepcopy(target).eval()
        condition(target, images, 1, len(images), torch.Generator().manual_seed(0))
        torch.testing.assert_close(evaluated(images), target.eval()(images), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not any(module._forward_hooks for module in (*target.modules(), *source.modules()))


@torch.no_grad()
def test_extra_channels_take_the_negative_of_a_feature(images, source) -> None:
    target = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
    channels, signs = torch.arange(8).repeat(2), torch.ones(16)
    signs[8:] = -1
    fit = LayerFit(layer="0", source="0", channels=channels, signs=signs)
    regress_features(
        PreparedNetwork(module=target, images=images, norms={"0": "1"}),
        PreparedNetwork(module=source, images=images, norms=NORMS),
        [fit],
        [1e-6],
        torch.Generator().manual_seed(0),
    )
    output = target.eval()(images)
    torch.testing.assert_close(output[:, :8], -output[:, 8:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output[:, :8], source[:2](images), rtol=1e-2, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("broken", ["source", "images", "type"])
def test_values_that_are_not_finite_and_narrow_types_leave_finite_weights(
    images, source, broken: str
) -> None:
    target, source = _network(1), deepcopy(source)
    if broken == "source":
        source[3].spread.weight[0, 0] = float("inf")
    seen = images.bfloat16() if broken == "type" else images
    target = target.to(seen.dtype)
    if broken == "images":
        target[0].weight[0] = 1e20
    with norms_in_training_mode(target):
        sums = residual_sums(target, seen[:2])
    outputs = {name: len(target.get_submodule(name).weight) for name in LAYERS}
    fits = [
        LayerFit(layer=k, source=k, channels=torch.arange(n), signs=torch.ones(n))
        for k, n in outputs.items()
    ]
    explained = regress_features(
        PreparedNetwork(module=target, images=seen, norms=NORMS, sums=sums),
        PreparedNetwork(
            module=source, images=images, norms=NORMS, sums=residual_sums(source, images[:2])
        ),
        fits,
        [0.1],
        torch.Generator().manual_seed(0),
    )
    assert explained
    assert all(p.isfinite().all() for p in target.parameters())


@torch.no_grad()
def test_layers_that_share_a_weight_or_act_twice_are_fitted_once(images, source) -> None:
    torch.manual_seed(1)
    shared, other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    other.weight = shared.weight
    target = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), other)
    fits = [
        LayerFit(layer=k, source="0", channels=torch.arange(3), signs=torch.ones(3))
        for k in ("0", "4")
    ]
    explained = regress_features(
        PreparedNetwork(module=target, images=images, norms={}),
        PreparedNetwork(module=source, images=images, norms=NORMS),
        fits,
        [1e-6],
        torch.Generator().manual_seed(0),
    )
    assert explained.keys() == {"0"}
    torch.testing.assert_close(shared(images), source[:2](images)[:, :3], rtol=1e-2, atol=1e-2)


class Permuted(nn.Module):
    """Layer norm over the channels of maps, which come back in their layout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_scale_and_shift_of_a_norm_without_statistics_are_fitted(images, norm: str) -> None:
    """The error is that of the least squares over all scales and shifts: any other norm is worse."""
    torch.manual_seed(3)
    source = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    behind = Permuted(6) if norm == "layer" else nn.GroupNorm(2, 6)
    target = nn.Sequential(nn.Conv2d(3, 6, 3), behind, nn.Conv2d(6, 4, 1))
    name, affine = ("1.norm", behind.norm) if norm == "layer" else ("1", behind)
    fit = LayerFit(layer="0", source="0", channels=torch.arange(6), signs=torch.ones(6))
    ours = PreparedNetwork(module=target, images=images, norms={}, token_norms={"0": name})
    theirs = PreparedNetwork(module=source, images=images, norms={})
    regress_features(ours, theirs, [fit], [1e-6], torch.Generator().manual_seed(0))
    wanted = source[0](images)

    def error() -> float:
        return float((behind(target[0](images)) - wanted).square().mean())

    best = error()
    assert best < 0.5 * float(wanted.var())
    for parameter in (affine.weight, affine.bias):
        for change in (-0.05, 0.05):
            parameter.add_(change)
            assert error() > best
            parameter.sub_(change)


class PixelBlock(nn.Module):
    """A branch of linear layers on pixels, added to maps whose channels come first, or last."""

    def __init__(self, channels: int, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.spread, self.project = nn.Linear(channels, 24), nn.Linear(24, channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_last:
            x = x.movedim(1, -1)
            x = x + self.mix(x.movedim(-1, 1)).permute(0, 2, 3, 1)
            return (x + self.project(self.spread(x).relu())).movedim(-1, 1)
        pixels = self.project(self.spread(x.permute(0, 2, 3, 1)).relu())
        x = x + pixels.permute(0, 3, 1, 2)
        return x + self.mix(x)


@torch.no_grad()
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("side", [8, 5], ids=["as many rows as channels", "fewer rows"])
def test_branches_may_have_their_channels_elsewhere_than_the_sum(side: int, is_last: bool) -> None:
    def build(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        block = PixelBlock(8, is_last=is_last)
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), block).eval()

    images = torch.randn(64, 3, side, side, generator=torch.Generator().manual_seed(0))
    source, target = build(0), build(1)
    sums = residual_sums(target, images[:2])
    assert {x.layer for x in sums} == {"2.mix", "2.project"}
    fits = [
        LayerFit(
            layer=n, source=n, channels=torch.arange(len(m.weight)), signs=torch.ones(len(m.weight))
        )
        for n, m in target.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    explained = regress_features(
        PreparedNetwork(module=target, images=images, norms={}, sums=sums),
        PreparedNetwork(
            module=source, images=images, norms={}, sums=residual_sums(source, images[:2])
        ),
        fits,
        [1e-7],
        torch.Generator().manual_seed(0),
    )
    assert min(explained.values()) > 0.999
    torch.testing.assert_close(target(images), source(images), rtol=1e-2, atol=1e-2)
