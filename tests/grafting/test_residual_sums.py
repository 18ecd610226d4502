"""Where branches are added up in real networks, and the values that flow there."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from sane_plugins.grafting.fitting import residual_sums
from sane_plugins.grafting.fitting.residual_sum import CallWatch


class Block(nn.Module):
    """A residual block whose branch has a learnt scale, and whose sum is bent in place."""

    def __init__(self, *, is_flat: bool = False) -> None:
        super().__init__()
        self.is_flat = is_flat
        self.first, self.last, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.scale = nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu_(self.first(x))
        scale = self.scale.flatten().reshape(1, -1, 1, 1) if self.is_flat else self.scale
        out = scale * self.norm(self.last(x))
        out += x
        return nn.functional.hardtanh(out, 0.0, 2.0, inplace=True)


@torch.no_grad()
def test_a_sum_and_its_rest_are_watched_as_they_flow() -> None:
    module, images = nn.Sequential(Block(), Block(is_flat=True)).eval(), torch.randn(2, 3, 5, 5)
    first, second = residual_sums(module, images)
    assert (first.layer, second.layer) == ("0.last", "1.last")
    assert first.rest_layer is None
    assert first.scale is module[0].scale
    assert second.scale is module[1].scale
    values: dict[int, torch.Tensor] = {}
    wanted = [first.call, first.rest, second.rest]
    with CallWatch({i: lambda x, i=i: values.__setitem__(i, x.clone()) for i in wanted}) as watch:
        with watch.paused():
            images.square()
        output = module(images)
    torch.testing.assert_close(values[first.rest], module[0].first(images).relu())
    torch.testing.assert_close(first.activation(values[first.call]), module[0](images))
    assert values[second.rest].min() >= 0
    assert output.max() <= 2


@pytest.mark.parametrize(
    ("name", "sums", "shortcuts"),
    [
        ("resnet18", 8, 3),
        ("mobilenet_v2", 10, 0),
        ("shufflenet_v2_x0_5", 0, 0),
        ("convnext_tiny", 18, 0),
    ],
)
def test_torchvision_networks(name: str, sums: int, shortcuts: int) -> None:
    if not find_spec("torchvision"):
        pytest.skip("needs torchvision")
    models = pytest.importorskip("sane_torchvision").import_torchvision().models
    module = getattr(models, name)().eval()
    found = residual_sums(module, torch.randn(2, 3, 64, 64))
    assert len(found) == sums
    assert sum(x.rest_layer is not None for x in found) == shortcuts
    assert all((x.activation is not None) == (name == "resnet18") for x in found)
    assert all((x.scale is not None) == (name == "convnext_tiny") for x in found)
    assert [x.call for x in found] == sorted(x.call for x in found)
