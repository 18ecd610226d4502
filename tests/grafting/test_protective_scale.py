"""Weights in front of norms grow, the network computes the same, and small ones survive Adam."""

from importlib.util import find_spec

import pytest
import torch
from tokennets import HandViT, TorchViT, trained
from torch import nn

from sane_plugins.grafting.fitting import protect_links, protect_scale


def _network(weight: float = 1e-3) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    with torch.no_grad():
        module[0].weight.mul_(weight)
        module[0].bias.mul_(weight)
    for _ in range(3):
        module.train()(torch.randn(16, 3, 8, 8))
    return module.requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("weight", [1e-4, 1e-2, 1.0])
def test_the_network_computes_the_same_whatever_the_norms_add_to_variances(weight: float) -> None:
    module, x = _network(weight), torch.randn(4, 3, 8, 8)
    before = module(x)
    default = {"0.weight": torch.randn(8, 3, 3, 3), "3.weight": module[3].weight.clone()}
    assert protect_scale(module, {"0": "1", "3": "4"}, default, 2.0) == ("0", "3")
    torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-5)
    for key, layer in (("0.weight", module[0]), ("3.weight", module[3])):
        assert float(layer.weight.std()) == pytest.approx(2 * float(default[key].std()), rel=0.02)


def test_weights_that_are_large_enough_stay_to_the_bit() -> None:
    module = _network(1.0)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    default = {"0.weight": 1e-3 * torch.randn(8, 3, 3, 3)}
    assert protect_scale(module, {"0": "1"}, default, 4.0) == ()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8, affine=False), nn.GroupNorm(2, 8)])
def test_layers_in_front_of_other_norms_stay(norm: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), norm)
    assert protect_scale(module, {"0": "1"}, {"0.weight": 100 * torch.randn(8, 3, 3, 3)}, 4.0) == ()


def test_one_step_of_adam_turns_protected_weights_less() -> None:
    turned = []
    for factor in (0.0, 4.0):
        module, x = _network(1e-3), torch.randn(16, 3, 8, 8)
        protect_scale(module, {"0": "1"}, {"0.weight": torch.randn(8, 3, 3, 3) * 0.2}, factor)
        before = module.requires_grad_()[0].weight.detach().clone()
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)
        module.train()(x).square().mean(dim=(0, 2, 3)).sub(2).square().sum().backward()
        optimizer.step()
        after = module[0].weight.detach()
        turned.append(float((after - before).norm() / before.norm()))
    assert turned[1] < 0.05 * turned[0]


class Scaled(nn.Module):
    """A branch between a norm and a learnt scale, and a norm that a second reader needs as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.spread, self.project = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.scale = nn.Parameter(torch.full((8,), 0.3))
        self.kept, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        branch = self.project(self.spread(self.norm(x)).relu()) * self.scale.view(1, -1, 1, 1)
        kept = self.kept(x + branch)
        return self.last(kept) + kept[:, :4]


@torch.no_grad()
def test_whatever_takes_a_factor_back_lets_weights_grow_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    module, x = Scaled().eval(), torch.randn(4, 3, 6, 6)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    wanted = module(x)
    assert protect_links(module, x, 16.0) == 2
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)
    ratio = {key: float((value / before[key]).mean()) for key, value in module.state_dict().items()}
    grown = {"spread.weight", "project.weight", "project.bias"}
    shrunk = {"norm.weight", "scale"}
    assert {k for k, r in ratio.items() if r > 15.9} == grown
    assert {k for k, r in ratio.items() if r < 0.1} >= shrunk
    # Both its readers need what the first convolution and the last norm make.
    assert {ratio[k] for k in ("first.weight", "kept.weight", "last.weight")} == {1.0}


@torch.no_grad()
@pytest.mark.parametrize("build", [TorchViT, HandViT])
def test_transformers_compute_the_same(build) -> None:
    module, x = trained(build()), torch.randn(3, 3, 32, 32)
    wanted = module(x)
    assert protect_links(module, x, 16.0) >= 4
    torch.testing.assert_close(module(x), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_convnext_has_three_links_in_each_block() -> None:
    if not find_spec("torchvision"):
        pytest.skip("needs torchvision")
    models = pytest.importorskip("sane_torchvision").import_torchvision().models
    module, x = models.convnext_tiny().eval(), torch.randn(2, 3, 64, 64)
    for parameter in module.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    wanted = module(x)
    assert protect_links(module, x, 16.0) >= 3 * 18
    torch.testing.assert_close(module(x), wanted, rtol=1e-2, atol=1e-2)
