"""Writers fitted to the stream of the source: nearer where a graft cut, the same where it was exact."""

from __future__ import annotations

import pytest
import torch
from tokennets import HandViT, TorchViT, features, trained
from torch import nn

from sane_plugins.grafting.transformers import fit_writers, graft_attention
from sane_plugins.grafting.transformers.branch_graft import BranchPair, meeting_places

RNG = torch.Generator().manual_seed(3)
# Smooth images, as photos are: their patches vary in fewer directions than there are pixels.
IMAGES = torch.nn.functional.interpolate(torch.randn(192, 3, 5, 5, generator=RNG), (32, 32))
SEEN, HELD_OUT = IMAGES[:160], IMAGES[160:]


def error(target: nn.Module, source: nn.Module) -> float:
    """Return the share of the held-out images' features that is missed."""
    wanted = features(source, HELD_OUT)
    missed = features(target, HELD_OUT) - wanted
    return float(missed.square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (TorchViT(depth=3), TorchViT(depth=2)),
        (TorchViT(hidden=40), TorchViT(hidden=16)),
        (TorchViT(depth=2), TorchViT(depth=4)),
        (HandViT(heads=4), HandViT(heads=2)),
    ],
    ids=["depth", "hidden", "deeper", "heads"],
)
def test_fitted_branches_come_nearer_on_images_not_seen(
    source: nn.Module, target: nn.Module
) -> None:
    trained(source)
    grafted = graft_attention(target, source, SEEN, SEEN)
    assert grafted is not None
    before = error(target, source)
    keys, share = fit_writers(target, source, grafted, SEEN, SEEN)
    assert keys <= grafted.changed
    assert 0 < share <= 1
    assert error(target, source) < 0.9 * before


def test_an_exact_graft_stays_exact() -> None:
    source, target = trained(TorchViT(heads=4)), TorchViT(width=32, heads=4)
    grafted = graft_attention(target, source, SEEN, SEEN)
    assert grafted is not None
    _, share = fit_writers(target, source, grafted, SEEN, SEEN)
    assert share == pytest.approx(1, abs=1e-3)
    found = features(target, HELD_OUT)[:, :24]
    torch.testing.assert_close(found, features(source, HELD_OUT), rtol=1e-2, atol=1e-3)


def places(sources: list[int | None], count: int) -> dict[int, int]:
    pairs = [None if s is None else BranchPair(source=s, share=1.0) for s in sources]
    return dict(meeting_places(pairs, count))


def test_streams_meet_where_all_earlier_branches_are_done() -> None:
    assert places([0, 1, 2, 3], 4) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert places([0, 1, 4, 5], 8) == {0: 0, 1: 3, 2: 4, 3: 7}
    assert places([0, 1, 0, 1, 2, 3], 4) == {3: 1, 4: 2, 5: 3}
    assert places([0, None, 2, 3], 4) == {}
