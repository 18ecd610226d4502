"""Heads of one's own: intervals that fit the errors, sets that hold the true class, the commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from sane_plugins.architectures import build
from sane_plugins.cli.main import main as sane_plugins
from sane_plugins.errors import ZooError
from sane_plugins.properties import FeatureDataset, fit_category, load_heads, save_heads
from sane_plugins.properties.dataset import STRUCTURE, group_folds
from sane_plugins.properties.heads.category_head import MAJORITY
from sane_plugins.properties.heads.conformal import conformal_radius, fit_widths
from sane_plugins.zoo import Entry, write_zoo

NETWORKS, ROWS = 60, 3
RUNS = [str(i // ROWS) for i in range(NETWORKS * ROWS)]


def _samples(seed: int, features: np.ndarray | None = None) -> FeatureDataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(RUNS), 5)) if features is None else features
    structure = np.tile([5.0, 5.0, 11.0], (len(RUNS), 1))
    return FeatureDataset(features={"statistics": x, STRUCTURE: structure}, networks=RUNS)


def _labeled(seed: int) -> tuple[FeatureDataset, list[str]]:
    samples = _samples(seed)
    x = samples.features["statistics"]
    noise = np.random.default_rng(seed + 1).normal(size=len(x))
    return samples, ["abc"[i] for i in np.digitize(x[:, 0] + 0.5 * noise, [-0.5, 0.5])]


def test_intervals_are_wide_where_errors_are_large_and_cover_new_runs() -> None:
    covered, ratio = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        predicted = rng.uniform(0, 1, len(RUNS))
        run = np.repeat(rng.normal(size=NETWORKS), ROWS)  # rows of a run err alike
        errors = np.abs((0.1 + predicted) * (run + 0.2 * rng.normal(size=len(RUNS))))
        half = len(RUNS) // 2
        folds = group_folds(RUNS[:half], 5, 0)
        widths = fit_widths(predicted[:half], errors[:half], folds, RUNS[:half])
        covered.append((errors[half:] <= widths.interpolate(predicted[half:])).mean())
        ratio.append(
            widths.interpolate(np.array([0.95]))[0] / widths.interpolate(np.array([0.05]))[0]
        )
    assert 0.85 <= np.mean(covered) <= 0.97
    assert np.median(ratio) > 2


def test_a_run_counts_once_however_many_checkpoints_it_has() -> None:
    one = conformal_radius(np.arange(20.0), 0.9)
    repeated = np.repeat(np.arange(20.0), 7)
    assert conformal_radius(repeated, 0.9, [str(int(x)) for x in repeated]) == one
    assert conformal_radius(repeated, 0.9) < conformal_radius(np.arange(5.0), 0.9) == np.inf


def test_a_category_is_learned_its_sets_hold_and_it_comes_back_from_disk(tmp_path: Path) -> None:
    samples, labels = _labeled(0)
    head = fit_category("kind", samples, labels)
    assert max(head.scores.values()) > head.scores[MAJORITY] + 0.2
    fresh, truth = _labeled(7)
    rows = [{k: x[i] for k, x in fresh.features.items()} for i in range(len(truth))]
    told = [head.estimate(row) for row in rows]
    assert 0.83 <= np.mean([t in e.set for t, e in zip(truth, told, strict=True)]) <= 0.98
    assert all(abs(sum(e.probabilities.values()) - 1) < 1e-5 and e.value == e.set[0] for e in told)
    again = load_heads(save_heads({"kind": head}, tmp_path / "heads.safetensors"))["kind"]
    assert again.estimate(rows[0]) == told[0]


def test_a_class_of_one_network_is_refused_by_name() -> None:
    samples, labels = _labeled(0)
    rare = ["rare" if run == "0" else x for run, x in zip(RUNS, labels, strict=True)]
    with pytest.raises(ZooError, match="'rare'"):
        fit_category("kind", samples, rare)
    with pytest.raises(ZooError, match="two classes"):
        fit_category("kind", samples, ["a"] * len(labels))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Return a zoo of untrained networks whose size of weights is a number and a name."""
    folder = tmp_path_factory.mktemp("zoos") / "zoo"
    factory = {"name": "mlp", "channels_in": 1, "size": 4, "width": 6, "depth": 1, "classes": 3}

    def items():
        for i in range(24):
            torch.manual_seed(i)
            scale = 0.1 + i / 12
            state = {k: v * scale for k, v in build(factory).state_dict().items()}
            told = {"scale": scale, "size": "big" if i % 24 > 11 else "small", "finite": True}
            if i == 5:
                del told["scale"]
            yield Entry(network=str(i), checkpoint="0", factory=factory, properties=told), state

    write_zoo(folder, "zoo", items())
    return folder


def _run(*arguments: object):
    return CliRunner().invoke(sane_plugins, list(map(str, arguments)))


def test_heads_are_fitted_shown_and_used_from_the_command_line(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    done = _run(
        "heads",
        "fit",
        zoo,
        "-o",
        file,
        "--property",
        "scale",
        "--property",
        "size",
        "--features",
        "statistics",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert "1 networks were left out: they have no 'scale'" in done.stderr
    told = {head["property"]: head for head in json.loads(done.stdout)}
    assert max(told["scale"]["scores"].values()) > 0.8
    assert told["size"]["classes"] == ["big", "small"]
    assert told["size"]["invariance"] == {"statistics": "construction"}
    assert "size" in _run("heads", "show", file).output
    torch.manual_seed(99)
    network = build(
        {"name": "mlp", "channels_in": 1, "size": 4, "width": 6, "depth": 1, "classes": 3}
    )
    save_file({k: v * 2 for k, v in network.state_dict().items()}, tmp_path / "net.safetensors")
    found = _run("predict", tmp_path / "net.safetensors", "--heads", file, "--json")
    assert found.exit_code == 0, found.output
    (estimates,) = json.loads(found.stdout).values()
    assert estimates["size"]["value"] == "big"
    assert estimates["scale"]["interval"][0] < 2 < estimates["scale"]["interval"][1] + 0.5
    assert "big" in _run("predict", tmp_path / "net.safetensors", "--heads", file).output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--property", "nonsense"], 2, "no network of the zoos has it"),
        (["--property", "size", "--features", "most"], 2, "most"),
        (["--property", "size", "--sane", "missing.safetensors"], 1, "missing.safetensors"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_sentence(
    zoo: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = _run("heads", "fit", zoo, "-o", tmp_path / "own.safetensors", *arguments)
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "own.safetensors").exists()


def test_heads_of_an_old_version_say_how_to_go_on(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "old.safetensors", {"sane_heads": '{"version": 1}'})
    with pytest.raises(ZooError, match="heads fit"):
        load_heads(tmp_path / "old.safetensors")
