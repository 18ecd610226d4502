"""Latency, measured and predicted: intervals hold what they promise, and strangers' files are refused."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from torch import nn

from sane_plugins.cost import (
    CostOptions,
    Latency,
    LatencyOptions,
    NetworkCost,
    cost_of,
    fit_latency,
    measure_latency,
    read_measured,
)
from sane_plugins.errors import UsageError

RATES = (2e-11, 1e-10, 5e-11, 4e-6)  # seconds of a MAC, a grouped one, a byte and an operation


def _network(seed: int, noise: float = 0.0) -> NetworkCost:
    rng = np.random.default_rng(seed)
    macs, moved, operations = (int(10 ** rng.uniform(*x)) for x in ((7, 10), (6, 9), (1, 3)))
    grouped = int(macs * rng.uniform(0, 0.5))
    terms = np.array([macs - grouped, grouped, moved, operations])
    seconds = float(terms @ np.array(RATES) * np.exp(noise * rng.standard_normal()))
    latency = Latency(
        seconds=seconds,
        interval=(seconds, seconds),
        passes=9,
        device="cpu",
        threads=1,
        clock="wall",
    )
    return NetworkCost(
        inputs=((1, 3, 224, 224),),
        parameters=1000,
        macs=macs,
        activations=100,
        layers=10,
        weight_bytes=4000,
        peak_bytes=5000,
        grouped_macs=grouped,
        operations=operations,
        moved_bytes=moved,
        latency=latency,
    )


def test_passes_are_timed() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    cost = cost_of(module, CostOptions())
    options = LatencyOptions(seconds=0.01, clock="cpu", threads=1)
    found = measure_latency(module, cost.inputs, options)
    assert 0 < found.interval[0] <= found.seconds <= found.interval[1] < 1
    assert (found.device, found.threads, found.clock) == ("cpu", 1, "cpu")
    assert found.passes > 1


@pytest.mark.parametrize(
    "wrong", [{"clock": "sun"}, {"seconds": 0.0}, {"threads": 0}, {"warmup": -1}]
)
def test_options_are_checked(wrong) -> None:
    with pytest.raises(UsageError):
        LatencyOptions(**wrong)


def test_processor_time_says_nothing_of_a_gpu() -> None:
    with pytest.raises(UsageError, match="--clock"):
        measure_latency(nn.Linear(2, 2), [(1, 2)], LatencyOptions(device="cuda", clock="cpu"))


def test_rates_of_a_machine_are_found_from_its_networks() -> None:
    model = fit_latency([_network(seed) for seed in range(12)])
    unseen = _network(99)
    predicted = model.predict(unseen)
    assert predicted is not None
    assert predicted.networks == 12
    assert predicted.seconds == pytest.approx(unseen.latency.seconds, rel=0.02)


def test_intervals_hold_their_share_of_unseen_networks() -> None:
    model = fit_latency([_network(seed, noise=0.2) for seed in range(40)])
    unseen = [_network(seed, noise=0.2) for seed in range(100, 400)]
    estimates = [model.predict(x) for x in unseen]
    inside = [
        e.interval[0] <= x.latency.seconds <= e.interval[1]
        for e, x in zip(estimates, unseen, strict=True)
    ]
    assert 0.82 < np.mean(inside) < 0.98
    assert np.median([e.interval[1] / e.interval[0] for e in estimates]) < 3


def test_what_is_not_known_is_not_predicted() -> None:
    model = fit_latency([_network(seed) for seed in range(12)])
    assert model.predict(replace(_network(1), moved_bytes=None)) is None


def test_few_networks_and_several_ways_of_measuring_are_refused() -> None:
    networks = [_network(seed) for seed in range(12)]
    with pytest.raises(UsageError, match="at least 9"):
        fit_latency(networks[:8])
    other = replace(networks[0], latency=replace(networks[0].latency, device="cuda"))
    with pytest.raises(UsageError, match="several ways"):
        fit_latency([*networks[1:], other])


def test_what_a_run_printed_is_read_again(tmp_path) -> None:
    networks = {f"net{i}": _network(i) for i in range(10)}
    records = {name: {**asdict(x), "predicted_latency": None} for name, x in networks.items()}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({**records, "broken": {"error": "no"}}))
    assert read_measured(path) == networks


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "[" * 100_000,
        '{"a": {"latency": 3}}',
        '{"a": {"latency": {"seconds": -1}}}',
        '{"a": {"macs": 1, "latency": {"seconds": 1, "interval": [0, NaN]}}}',
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, text: str) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--measured"):
        read_measured(path)
