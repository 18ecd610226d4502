"""Networks to measure next: chosen from what nobody measured, and better for a linear head than chance."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sane_plugins.architectures import small_cnn
from sane_plugins.cli.main import main
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.features import StatisticsEncoder
from sane_plugins.properties import (
    CRITERIA,
    SuggestOptions,
    embed_rows,
    suggest_networks,
    zoo_features,
)
from sane_plugins.zoo import Entry, Zoo, set_properties, write_zoo

FACTORY = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}


@pytest.fixture
def half_measured(tmp_path) -> Zoo:
    """Write a zoo of twelve networks of growing scales, of which the first six are measured."""
    torch.manual_seed(0)
    items = []
    for i in range(12):
        state = {key: value * 1.3**i for key, value in small_cnn().state_dict().items()}
        measured = {"finite": True, **({"test_accuracy": i / 12} if i < 6 else {})}
        entry = Entry(network=f"net{i}", checkpoint="0", factory=FACTORY, properties=measured)
        items.append((entry, state))
    return write_zoo(tmp_path / "zoo", "made", items)


def _rows(seed: int = 0, count: int = 120, width: int = 8):
    rng = np.random.default_rng(seed)
    scale = np.geomspace(3, 0.1, width)
    return rng.standard_t(3, (count, width)) * scale


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rows_are_chosen_once_and_never_the_measured(criterion: str) -> None:
    rows = embed_rows(_rows())
    measured = [3, 7, 11]
    chosen = CRITERIA[criterion](rows, measured, 20)
    assert len(chosen) == len({*chosen}) == 20
    assert not {*chosen} & {*measured}
    assert CRITERIA[criterion](rows, measured, 20) == chosen
    everything = CRITERIA[criterion](rows, measured, 1000)
    assert sorted(everything) == sorted({*range(120)} - {*measured})


def _mean_variance(rows, chosen) -> float:
    matrix = 0.03 * np.eye(rows.shape[1]) + rows[chosen].T @ rows[chosen]
    return float(np.mean(np.einsum("nd,de,ne->n", rows, np.linalg.inv(matrix), rows)))


def test_bait_leaves_less_variance_than_chance_and_than_single_swaps() -> None:
    rows = embed_rows(_rows())
    chosen = CRITERIA["bait"](rows, [], 12)
    best = _mean_variance(rows, chosen)
    rng = np.random.default_rng(1)
    assert best < min(_mean_variance(rows, rng.choice(120, 12, replace=False)) for _ in range(200))
    swapped = [
        _mean_variance(rows, [*chosen[:i], other, *chosen[i + 1 :]])
        for i in range(12)
        for other in rng.choice(120, 5)
        if other not in chosen
    ]
    assert best < np.quantile(swapped, 0.05)


def test_what_is_measured_is_not_chosen_again(half_measured: Zoo) -> None:
    """Rows like those measured teach little: the far half is taken first."""
    found = suggest_networks(half_measured, SuggestOptions(count=3))
    assert (found.measured, found.unmeasured) == (6, 6)
    assert {x.network for x in found.entries} <= {f"net{i}" for i in range(6, 12)}


def test_features_are_kept_in_the_zoo(half_measured: Zoo, monkeypatch) -> None:
    first, notes = zoo_features(half_measured, half_measured.entries, StatisticsEncoder())
    assert not notes
    monkeypatch.setattr(StatisticsEncoder, "features", lambda *_: pytest.fail("computed again"))
    again, _ = zoo_features(half_measured, half_measured.entries[::-1], StatisticsEncoder())
    assert np.array_equal(again[::-1], first)


def test_a_broken_file_of_features_is_made_anew(half_measured: Zoo) -> None:
    first, _ = zoo_features(half_measured, half_measured.entries, StatisticsEncoder())
    path = half_measured.folder / "features-statistics.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    again, _ = zoo_features(half_measured, half_measured.entries, StatisticsEncoder())
    assert np.array_equal(again, first)


def test_a_zoo_that_is_measured_has_nothing_to_suggest(half_measured: Zoo) -> None:
    every = {entry.key: {"test_accuracy": 0.5} for entry in half_measured.entries}
    set_properties(half_measured.folder, every)
    with pytest.raises(ZooError, match="all of its 12"):
        suggest_networks(Zoo.open(half_measured.folder), SuggestOptions())


@pytest.mark.parametrize("wrong", [{"count": 0}, {"features": "none"}, {"criterion": "luck"}])
def test_options_are_checked(wrong) -> None:
    with pytest.raises(UsageError):
        SuggestOptions(**wrong)


def test_the_command_names_networks(half_measured: Zoo) -> None:
    arguments = ["zoo", "suggest", str(half_measured.folder), "-n", "2"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert len(told["suggested"]) == 2
    assert all(x["network"] in shown.stdout for x in told["suggested"])
    none = CliRunner().invoke(main, ["zoo", "suggest", str(half_measured.folder / "no")])
    assert none.exit_code == 1
    assert none.stderr.count("Error") == 1
