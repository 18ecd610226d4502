"""Weights of any shape and size: bounded memory and work, and never an answer that is not finite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile.bounded import run, run_python
from torch import nn

from sane_plugins.autoencoder import SANE, SANEConfig, encode
from sane_plugins.errors import SourceError
from sane_plugins.features import ENCODERS, EncodeOptions, embed, statistics
from sane_plugins.features.matrix_statistics import channel_features, spectrum
from sane_plugins.features.random_probes import probe
from sane_plugins.formats import from_state_dict
from sane_plugins.host import Host
from sane_plugins.inspection import survey_network, survey_record
from sane_plugins.tasks import correct
from sane_plugins.weights import WeightGraph

FLOAT32 = torch.finfo(torch.float32)
SMALL = SANEConfig(
    token_width=16, latent_width=4, model_width=8, heads=2, layers=1, window=8, halo=2
)


def _network(weight: torch.Tensor, bias: torch.Tensor | None = None) -> WeightGraph:
    state = {"0.weight": weight, "0.bias": bias if bias is not None else torch.zeros(len(weight))}
    return from_state_dict({**state, "2.weight": torch.ones(3, len(weight))}, "net")


RNG = torch.Generator().manual_seed(0)
NORMAL = torch.randn(12, 7, generator=RNG)
ORDINARY: dict[str, torch.Tensor] = {
    "zero": torch.zeros(12, 7),
    "constant": torch.full((12, 7), 0.02),
    "rank 1": torch.outer(torch.arange(12.0), torch.arange(7.0)),
    "denormal": torch.full((12, 7), 1e-42) * NORMAL,
    "one row": torch.ones(1, 7),
    "one column": torch.ones(12, 1),
    "huge": NORMAL * 1e30,
    "near the limit": NORMAL.sign() * 1.6e38,
    "float16 at its limit": NORMAL.sign().half() * 65504,
    "bfloat16, huge": (NORMAL * 1e30).bfloat16(),
    "float64, tiny": NORMAL.double() * 1e-300,
    "one huge value": torch.cat([torch.full((1, 7), 1e38), torch.zeros(11, 7)]),
}
BEYOND: dict[str, torch.Tensor] = {
    "float64 of 1e200": NORMAL.double() * 1e200,
    "one of 1e39 in float64": torch.cat(
        [torch.full((1, 7), 1e39, dtype=torch.float64), NORMAL[1:].double()]
    ),
    "the largest float32": torch.full((12, 7), FLOAT32.max),
    "NaN": torch.full((12, 7), float("nan")),
    "infinity in float16": (NORMAL * 1e6).half() * 1e6,
    "minus infinity": torch.full((12, 7), -float("inf")),
}


@pytest.mark.parametrize("weight", ORDINARY.values(), ids=ORDINARY)
def test_degenerate_weights_have_finite_features(weight: torch.Tensor) -> None:
    graph, host = _network(weight), Host.installed()
    for encoder in ("statistics", "sane"):
        encoding = embed(graph, EncodeOptions(encoder=encoder))
        assert encoding.embedding.isfinite().all()
        assert encoding.layers.isfinite().all()
    for estimate in host.predict(graph).values():
        numbers = getattr(estimate, "probabilities", {"": estimate.value}).values()
        assert np.isfinite([*numbers]).all()
    assert not host.problems


@pytest.mark.parametrize("weight", BEYOND.values(), ids=BEYOND)
def test_weights_beyond_single_precision_are_refused_or_encoded_rightly(
    weight: torch.Tensor,
) -> None:
    graph = _network(weight)
    with pytest.raises(SourceError, match=r"'0\.weight'.*not finite"):
        Host.installed().predict(graph)
    with pytest.raises(SourceError, match=r"'0\.weight'.*not finite"):
        embed(graph, EncodeOptions(encoder="statistics"))
    try:
        encoding = embed(graph)
    except SourceError as error:
        assert "'0.weight'" in str(error)
    else:
        assert encoding.embedding.isfinite().all()


def test_a_sane_that_computes_nonsense_is_told() -> None:
    model = SANE(SMALL).eval()
    with torch.no_grad():
        model.tokens_in.weight.fill_(1e38)
        model.latents_out.weight.fill_(1e38)
    with pytest.raises(SourceError, match="computes from it is not finite"):
        encode(model, _network(NORMAL))


def test_probes_of_deep_networks_of_huge_weights_stay_finite() -> None:
    chain = [(np.full((5, 5, 1), 1e38), np.full(5, 1e38)) for _ in range(30)]
    activities, decisions = probe(chain)
    assert np.isfinite(decisions).all()
    assert np.isfinite(activities).all()


def test_a_network_that_overflows_tells_nothing_right() -> None:
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.fill_(float("inf"))
    assert not correct(network, torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)).any()


@pytest.mark.parametrize("shape", [(2049, 3, 1), (3000, 5, 2), (5000, 40, 1)])
def test_cosines_taken_in_tiles_are_those_taken_at_once(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = np.random.default_rng(0).standard_normal(shape)
    tiled = channel_features(w)
    monkeypatch.setattr("sane_plugins.features.matrix_statistics._MAX_ROWS_AT_ONCE", 10_000)
    np.testing.assert_allclose(tiled, channel_features(w), rtol=1e-5, atol=1e-6)


def test_rows_that_are_left_out_do_not_depend_on_the_order_of_channels() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((9000, 2, 1))
    permuted = w[rng.permutation(len(w))]
    np.testing.assert_allclose(
        channel_features(w), channel_features(permuted), rtol=1e-4, atol=1e-6
    )


def test_decisions_of_more_outputs_than_probes_are_those_of_the_whole_covariance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w = np.random.default_rng(0).standard_normal((300, 20, 1))
    _, decisions = probe([(w, None)])
    monkeypatch.setattr(
        "sane_plugins.features.random_probes._smaller_covariance", lambda x: np.cov(x)
    )
    np.testing.assert_allclose(decisions, probe([(w, None)])[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(20_000, 64), (1, 5_000_000), (1_000_000, 4)])
def test_statistics_of_any_shape_are_small_work(shape: tuple[int, int], tmp_path: Path) -> None:
    code = (
        "import torch; from sane_plugins.features import statistics;"
        " from sane_plugins.formats import from_state_dict;"
        f" w = torch.randn({shape}); f = statistics(from_state_dict({{'w': w}}, 'net'));"
        " assert f.isfinite().all()"
    )
    outcome = run_python("-c", code, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    outcome.require_small(seconds=20)


def test_predictions_from_an_embedding_table_are_small_work(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"wte.weight": torch.randn(50257, 64, generator=RNG)}, path)
    assert run("predict", path).require_small().code == 0


def test_a_network_that_is_not_probed_is_not_encoded_to_predict_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sane_plugins.features.encoders._encode_stream", None)
    unprobed = torch.zeros(1).expand(2**15 + 1, 2)
    graph = from_state_dict({"w": unprobed}, "net")
    assert ENCODERS["sane"].features(graph, EncodeOptions()).isfinite().all()


def test_a_spectrum_out_of_reach_is_refused_by_shape() -> None:
    graph = from_state_dict({"w": torch.zeros(1).expand(20_000, 20_000)}, "net")
    with pytest.raises(SourceError, match="'w': its shape is"):
        statistics(graph)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-42])
def test_spectra_of_constant_matrices_are_finite(value: float) -> None:
    assert np.isfinite(spectrum(np.full((40, 9, 4), value))).all()


def test_the_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"0.weight": torch.full((4, 4), 1e200, dtype=torch.float64)}, path)
    outcome = run("predict", path).require_small()
    assert str(path) in outcome.require_sentence()
    assert "builtin" not in outcome.stderr


@pytest.mark.parametrize("weight", BEYOND.values(), ids=BEYOND)
def test_weights_out_of_reach_are_inspected_in_finite_numbers(weight: torch.Tensor) -> None:
    survey = survey_network(_network(weight))
    assert 0 < survey.nonfinite <= weight.numel()
    json.dumps(survey_record(survey), allow_nan=False)


def test_chains_of_very_many_matrices_are_not_probed() -> None:
    activities, decisions = probe([(np.ones((1, 1, 1)), None)] * 1025)
    assert len(activities) == 1025
    assert not np.any(activities)
    assert not decisions.any()
