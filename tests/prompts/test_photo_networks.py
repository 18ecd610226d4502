"""The compact photo networks: large models' grids, any image size, recognised by their shapes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sane_plugins.architectures import build
from sane_plugins.host import Host
from sane_plugins.prompts import read_card

FAMILIES = ("small_resnet", "small_mobilenet", "small_convnext")
OTHERS = {  # of other depths and widths
    "small_resnet": {"widths": (8, 16), "blocks": (1, 2), "channels_in": 1, "classes": 3},
    "small_mobilenet": {"widths": (8, 16, 24), "blocks": (1, 2, 1), "features": 32, "classes": 3},
    "small_convnext": {"widths": (8, 16), "blocks": (2, 1), "channels_in": 1, "classes": 3},
}


def _grids(module: nn.Module, size: int) -> list[int]:
    """Return the sides of the grids that convolutions give, in the order of execution."""
    sides = []
    hooks = [
        m.register_forward_hook(lambda _m, _x, y: sides.append(y.shape[-1]))
        for m in module.modules()
        if isinstance(m, nn.Conv2d)
    ]
    module(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return sides


@pytest.mark.parametrize("name", FAMILIES)
def test_grids_end_at_a_thirty_second_of_the_image(name: str) -> None:
    module = build({"name": name, "classes": 5}).eval()
    assert 0.9e6 < sum(p.numel() for p in module.parameters()) < 2e6
    sides = [side for side in _grids(module, 64) if side > 1]  # gates have one pixel
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == 2
    for size in (32, 50, 96):
        assert module(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_a_vit_takes_other_sizes_than_its_own() -> None:
    factory = {"name": "vit", "channels_in": 3, "size": 64, "patch": 8, "width": 24, "heads": 3}
    module = build(factory).eval()
    images = torch.randn(2, 3, 64, 64)
    own = module(images)
    smaller = nn.functional.interpolate(images, (48, 40))
    assert module(smaller).shape == own.shape
    with torch.no_grad():  # equal positions stay equal on any grid
        module[1].positions[:-1] = 0.5
    tokens = module[1](torch.zeros(1, 24, 3, 7))
    assert torch.allclose(tokens[0, :-1], torch.full((21, 24), 0.5), atol=1e-6)
    assert torch.equal(tokens[0, -1], module[1].added()[-1])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("is_default", [True, False])
def test_a_file_is_recognised_and_computes_the_same(name: str, is_default: bool, tmp_path) -> None:
    torch.manual_seed(0)
    module = build({"name": name, **({} if is_default else OTHERS[name])}).eval()
    host, path = Host.installed(), tmp_path / "net.pt"
    torch.save(module.state_dict(), path)
    network = host.prompt_network(path)
    assert network.graph.has_topology
    images = torch.randn(2, 3 if is_default or name == "small_mobilenet" else 1, 40, 40)
    assert torch.equal(network.build()(images), module(images))


def test_shipped_networks_know_their_images_and_tell_them_apart() -> None:
    host = Host.installed()
    shipped = {k: x for k, x in host.prompts().items() if k.startswith("photo-")}
    for name in shipped:
        network = host.prompt_network(name)
        assert len(network.info.classes) == 100
        assert "ImageNet's terms" in network.info.licence
        card = read_card(Path(network.graph.source))
        assert card.record["accuracy"] > 0.1  # ten times chance
        module = network.build()
        size = network.info.preparation.size
        assert module(torch.zeros(1, 3, *size)).shape == (1, 100)
        assert next(module.parameters()).dtype == torch.float32
