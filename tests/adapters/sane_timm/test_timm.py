"""timm's networks by name, through the same small interface as torchvision's."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import sane_timm
import torch

from sane_plugins.errors import SourceError
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import detokenize, load_into, tokenize

# Name and the side of its images.
NETWORKS = {
    "resnet10t": 64,
    "vit_tiny_patch16_224": 224,
    "convnext_atto": 64,
    "mixer_s32_224": 224,
    "efficientnet_lite0": 64,
    "test_vit": 160,
}
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@needs_timm
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_returns_bit_for_bit_and_has_symmetries(name: str) -> None:
    module = sane_timm.sane_build(f"timm:{name}", 7).eval()
    graph = sane_timm.sane_open(f"timm:{name},classes=7")
    load_into(module, detokenize(tokenize(graph, 128), graph))
    assert all(torch.equal(module.state_dict()[p.key], t) for p, t in graph.items())
    groups = permutation_groups(graph)
    moved = permute(graph, random_permutations(groups, torch.Generator().manual_seed(0)))
    image = torch.randn(1, 3, NETWORKS[name], NETWORKS[name])
    with torch.inference_mode():
        before = module(image)
        load_into(module, moved)
        assert torch.allclose(before, module(image), atol=1e-4 * max(1, before.abs().max()))
    assert before.shape == (1, 7)


@needs_timm
def test_weights_fit_other_classes_and_channels(tmp_path: Path) -> None:
    whole = sane_timm.sane_build("timm:resnet10t", 5).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    gray = sane_timm.sane_build(f"timm:resnet10t,channels=1@{tmp_path / 'w.pth'}", None).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(whole(image.expand(-1, 3, -1, -1)), gray(image), atol=1e-4)
    other = sane_timm.sane_open(f"timm:resnet10t,classes=9@{tmp_path / 'w.pth'}")
    assert any("freshly initialised" in note for note in other.notes)
    with pytest.raises(SourceError, match="the network"):
        sane_timm.sane_build(f"timm:resnet14t@{tmp_path / 'w.pth'}", None)


@needs_timm
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("resnet10tt", "did you mean"),
        ("resnet10t.nothing", "Invalid pretrained tag.*leave out"),
        ("tresnet_m,channels=1", "no plain convolution reads the images"),
    ],
)
def test_refusals(source: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        sane_timm.sane_build(f"timm:{source}", None)


def test_a_missing_timm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sane_timm.build.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"pip install 'sane-plugins\[timm\]'"):
        sane_timm.sane_open("timm:resnet10t")


@pytest.mark.parametrize("source", ["resnet18", "torchvision:resnet18", "small-cnn", None, 3])
def test_other_sources_are_left_to_others(source: object) -> None:
    assert sane_timm.sane_open(source) is None
