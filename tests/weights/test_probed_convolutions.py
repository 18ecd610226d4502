"""Convolutions with a forward pass of their own, and blurs: connected as what they compute allows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import from_module, load_into


class SamePadded(nn.Conv2d):
    def forward(self, x):
        missing = -x.shape[-1] % self.stride[0]
        return self._conv_forward(
            functional.pad(x, [0, missing, 0, missing]), self.weight, self.bias
        )


class Standardized(nn.Conv2d):
    def forward(self, x):
        rows = self.weight.flatten(1)
        weight = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        if x.shape[-1] > 1:  # no trace goes on from here
            return self._conv_forward(x, weight.view_as(self.weight), self.bias)
        raise ValueError


class Rolled(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x) if x.shape[-1] > 1 else x
        return y.roll(1, 1)


class Gated(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x) if x.shape[-1] > 1 else x
        return y * y[:, :1]


class Blur(nn.Module):
    def __init__(self, channels: int, same: bool) -> None:
        super().__init__()
        strengths = torch.ones(channels) if same else torch.arange(channels) + 1.0
        filters = strengths.view(-1, 1, 1, 1) * torch.ones(channels, 1, 3, 3) / 9
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x):
        return functional.conv2d(x, self.filters, stride=2, groups=len(self.filters))


def network(layer: type[nn.Conv2d], groups: int, same: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        layer(8, 16, 3, groups=groups),
        nn.BatchNorm2d(16),
        Blur(16, same),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )
    return net.eval()


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("layer", [nn.Conv2d, SamePadded, Standardized, Rolled, Gated])
def test_a_permuted_copy_computes_the_same(layer, same, groups) -> None:
    net = network(layer, groups, same)
    graph = from_module(net)
    found = permutation_groups(graph)
    orders = random_permutations(found, torch.Generator().manual_seed(1))
    image = torch.randn(2, 3, 17, 17)
    expected = net(image)
    load_into(net, permute(graph, orders, found))
    torch.testing.assert_close(net(image), expected)


@pytest.mark.parametrize("layer", [SamePadded, Standardized])
def test_a_plain_convolution_of_another_class_is_connected(layer) -> None:
    ours, torchs = (
        permutation_groups(from_module(network(x, 1, True))) for x in (layer, nn.Conv2d)
    )
    assert {(x.size, *x.slices) for x in ours} == {(x.size, *x.slices) for x in torchs}
    assert len(ours) == 2


@pytest.mark.parametrize("layer", [Rolled, Gated])
def test_one_that_mixes_channels_is_not(layer) -> None:
    assert not permutation_groups(from_module(network(layer, 1, True)))
