"""Windows and the autoencoder: every length works, and nothing outside a window's span matters."""

import pytest
import torch

from sane_plugins.autoencoder import (
    SANE,
    SANEConfig,
    load_sane,
    read_metadata,
    save_sane,
)
from sane_plugins.autoencoder.halo_windows import cut_windows, join_windows
from sane_plugins.autoencoder.positions import POSITION_WIDTH, position_features
from sane_plugins.errors import ZooError
from sane_plugins.weights import Layer, Param, WeightGraph

SMALL = SANEConfig(
    token_width=16, latent_width=8, model_width=24, heads=2, layers=1, window=8, halo=4
)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, *range(33, 140)])
def test_windows_join_to_the_sequence_for_any_length(length: int) -> None:
    sequence = torch.randn(length, 3)
    windows = cut_windows(sequence, window=16, halo=8)
    assert windows.shape[1] == min(32, length)
    assert torch.equal(join_windows(windows, length, window=16, halo=8), sequence)


def test_a_token_sees_its_halo() -> None:
    """Each owned token lies at least `halo` inside its window, unless the sequence ends there."""
    windows = cut_windows(torch.arange(100), window=10, halo=5)
    for index, window in enumerate(windows):
        for token in range(index * 10, index * 10 + 10):
            assert {max(token - 5, 0), min(token + 5, 99)} <= set(window.tolist())


def test_places_differ_between_all_tokens_and_stay_finite_for_long_networks() -> None:
    shapes = [(300, 9 * 128), (2000, 20 * 128), (128,)]
    params = [Param(key=str(s), role="weight", shape=s, dtype=torch.float32) for s in shapes]
    layers = (Layer(name="all", kind="unknown", params=tuple(params)),)
    layout = WeightGraph(source="made", layers=layers, tensors={}).token_layout(128)
    places = position_features(layout, 0, len(layout))
    assert places.shape == (len(layout), POSITION_WIDTH)
    assert places.isfinite().all()
    assert len(torch.unique(places, dim=0)) == len(layout)


def test_model_file_holds_the_same_model(tmp_path) -> None:
    model = SANE(SMALL).eval()
    path = save_sane(model, tmp_path / "m.safetensors", {"recipe": "none"})
    again = load_sane(path)
    assert again.config == SMALL
    assert read_metadata(path)["recipe"] == "none"
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_broken_model_file_is_one_sentence(tmp_path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"no")
    with pytest.raises(ZooError, match="pretrain one"):
        load_sane(tmp_path / "m.safetensors")


def test_latents_have_mean_zero_and_deviation_one() -> None:
    model = SANE(SMALL).eval()
    latents = model.encode(
        torch.randn(2, 5, 16), torch.randn(2, 5, 4), torch.randn(2, 5, POSITION_WIDTH)
    )
    assert latents.mean(-1).abs().max() < 1e-5
    assert (latents.std(-1, correction=0) - 1).abs().max() < 1e-2
