"""Kinds of networks: an expert for each, ranks for unknown ones, and honesty where networks are few."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from sane_plugins.architectures import build
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.cli.main import main as sane_plugins
from sane_plugins.errors import ZooError
from sane_plugins.progress import Progress
from sane_plugins.properties import (
    FeatureDataset,
    FitOptions,
    KindsHead,
    Rank,
    fit_head,
    fit_heads,
    fit_kinds,
    load_heads,
    rank_unknown,
    save_heads,
)
from sane_plugins.properties.dataset import STRUCTURE
from sane_plugins.properties.fitting.cross_validation import MEAN, SHIPPED, Prior
from sane_plugins.properties.kinds import find_kinds
from sane_plugins.zoo import Entry, Zoo, write_zoo

SMALL, LARGE = np.array([3.0, 3.0, 8.0]), np.array([3.0, 3.0, 14.0])
FEW = {"features": "statistics"}


def _kind(
    structure: np.ndarray, networks: int, noise: float, seed: int, sign: float = 1.0
) -> tuple[FeatureDataset, np.ndarray]:
    """Return networks of one kind, whose property is their first feature, or its negative, and noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * networks, 5))
    y = sign * x[:, 0] + noise * rng.normal(size=len(x))
    names = [f"{structure[2]}-{i // 2}" for i in range(len(x))]
    features = {"statistics": x, STRUCTURE: np.tile(structure, (len(x), 1))}
    return FeatureDataset(features=features, networks=names), y


def _together(*kinds: tuple[FeatureDataset, np.ndarray]) -> tuple[FeatureDataset, np.ndarray]:
    features = {
        name: np.concatenate([samples.features[name] for samples, _ in kinds])
        for name in ("statistics", STRUCTURE)
    }
    networks = [name for samples, _ in kinds for name in samples.networks]
    return FeatureDataset(features=features, networks=networks), np.concatenate(
        [y for _, y in kinds]
    )


@pytest.fixture(scope="module")
def two_kinds() -> KindsHead:
    """Return a head for a kind that is easily told, and another that is the opposite and noisy."""
    both = _together(_kind(SMALL, 50, 0.05, 0), _kind(LARGE, 50, 1.0, 1, sign=-1.0))
    head = fit_kinds("quality", *both, partial(fit_head, "quality", **FEW))
    assert isinstance(head, KindsHead)
    return head


def test_an_expert_is_the_head_that_is_fitted_to_its_kind_alone(two_kinds: KindsHead) -> None:
    samples, y = _kind(SMALL, 50, 0.05, 0)
    alone = fit_head("quality", samples, y, **FEW)
    fresh, _ = _kind(SMALL, 30, 0.05, 5)
    assert np.array_equal(two_kinds.predict(fresh.features), alone.predict(fresh.features))
    assert np.array_equal(two_kinds.intervals(fresh.features), alone.intervals(fresh.features))


@pytest.mark.parametrize(("structure", "noise", "sign"), [(SMALL, 0.05, 1.0), (LARGE, 1.0, -1.0)])
def test_intervals_hold_for_each_kind(
    two_kinds: KindsHead, structure: np.ndarray, noise: float, sign: float
) -> None:
    fresh, y = _kind(structure, 300, noise, 9, sign)
    low, high = two_kinds.intervals(fresh.features).T
    assert 0.8 <= ((low <= y) & (y <= high)).mean() <= 0.98


@pytest.fixture(scope="module")
def two_zoos() -> KindsHead:
    """Return a head for one kind of networks, whose property the zoos tell in opposite ways."""
    both = _together(_kind(SMALL, 30, 0.05, 0), _kind(SMALL, 30, 0.05, 1, sign=-1.0))
    names = ["alike"] * 60 + ["opposite"] * 60
    networks = [f"{zoo}-{name}" for zoo, name in zip(names, both[0].networks, strict=True)]
    samples = replace(both[0], zoos=names, networks=networks)
    head = fit_kinds("quality", samples, both[1], partial(fit_head, "quality", **FEW))
    assert isinstance(head, KindsHead)
    return head


@pytest.mark.parametrize(("zoo", "sign"), [("alike", 1.0), ("opposite", -1.0)])
def test_a_zoo_that_is_named_has_its_own_expert(two_zoos: KindsHead, zoo: str, sign: float) -> None:
    assert two_zoos.zoos == ("alike", "opposite")
    fresh, y = _kind(SMALL, 60, 0.05, 5, sign)
    told = two_zoos.like(zoo)
    assert np.corrcoef(told.predict(fresh.features), y)[0, 1] > 0.9
    low, high = told.intervals(fresh.features).T
    assert ((low <= y) & (y <= high)).mean() > 0.8
    alone = fit_head("quality", *_kind(SMALL, 30, 0.05, int(sign < 0), sign), **FEW)
    assert np.abs(alone.predict(fresh.features) - told.predict(fresh.features)).max() < 0.5
    unsure = np.diff(two_zoos.intervals(fresh.features)).mean()
    assert np.diff(told.intervals(fresh.features)).mean() < unsure / 3


def test_zoos_come_back_from_disk(two_zoos: KindsHead, tmp_path: Path) -> None:
    again = load_heads(save_heads({"quality": two_zoos}, tmp_path / "heads.safetensors"))["quality"]
    assert again.zoos == two_zoos.zoos
    row = {name: x[0] for name, x in _kind(SMALL, 3, 0.1, 3)[0].features.items()}
    for zoo in two_zoos.zoos:
        assert again.like(zoo).estimate(row) == two_zoos.like(zoo).estimate(row)


def test_a_head_of_kinds_comes_back_from_disk(two_kinds: KindsHead, tmp_path: Path) -> None:
    again = load_heads(save_heads({"quality": two_kinds}, tmp_path / "heads.safetensors"))
    samples, _ = _kind(LARGE, 3, 0.1, 3)
    row = {name: x[0] for name, x in samples.features.items()}
    assert again["quality"].estimate(row) == two_kinds.estimate(row)
    assert again["quality"].scores == two_kinds.scores


def test_an_unknown_kind_has_a_score_that_orders_it() -> None:
    alike = _together(_kind(SMALL, 50, 0.1, 0), _kind(LARGE, 50, 0.1, 1))
    head = fit_kinds("quality", *alike, partial(fit_head, "quality", **FEW))
    foreign, y = _kind(np.array([9.0, 2.0, 20.0]), 40, 0.1, 2)
    told = [head.estimate({k: x[i] for k, x in foreign.features.items()}) for i in range(len(y))]
    assert not any(x.in_distribution for x in told)
    assert np.corrcoef([x.score for x in told], y)[0, 1] > 0.8
    ranks = rank_unknown({str(i): x for i, x in enumerate(told)})
    best = max(range(len(y)), key=lambda i: told[i].score)
    assert ranks[str(best)] == Rank(1, len(y))


def test_kinds_are_found_from_shapes_alone() -> None:
    near = np.add(SMALL, [0, 0, 0.9])
    chain = np.array([LARGE, SMALL, near, np.add(near, [0, 0, 0.9]), np.add(SMALL, [1, 0, 0])])
    kinds = find_kinds(chain)
    assert kinds[1] == kinds[2] == kinds[3]
    assert len(set(kinds.tolist())) == 3


def test_a_kind_of_few_networks_shares_an_expert_and_is_known() -> None:
    head = fit_kinds(
        "quality",
        *_together(_kind(SMALL, 40, 0.1, 0), _kind(LARGE, 6, 0.1, 1)),
        partial(fit_head, "quality", **FEW),
    )
    fresh, _ = _kind(LARGE, 5, 0.1, 4)
    row = {name: x[0] for name, x in fresh.features.items()}
    assert head.expert(row).knows(LARGE)
    assert head.estimate(row).in_distribution


def test_noise_is_told_as_the_mean_and_few_networks_recalibrate_another_head() -> None:
    samples, y = _kind(SMALL, 15, 0.3, 0)
    noise = np.random.default_rng(7).normal(size=len(y))
    mean = fit_head("quality", samples, noise, **FEW)
    assert mean.regressor == MEAN
    assert np.allclose(mean.predict(samples.features), noise.mean())
    many = fit_head("quality", *_kind(SMALL, 150, 0.3, 1), **FEW)
    prior = Prior(features="statistics", members=many.members)
    head = fit_head("quality", samples, 5 + 2 * y, **FEW, priors=[prior])
    assert head.regressor.startswith(SHIPPED)
    fresh, truth = _kind(SMALL, 100, 0.3, 3)
    alone = fit_head("quality", samples, 5 + 2 * y, **FEW)
    error, error_alone = (
        np.mean((x.predict(fresh.features) - 5 - 2 * truth) ** 2) for x in (head, alone)
    )
    assert error < error_alone


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Return a zoo of untrained networks with a column that follows from weights, and one that does not."""
    factory = {"name": "mlp", "channels_in": 1, "size": 4, "width": 6, "depth": 1, "classes": 3}
    noise = np.random.default_rng(0).normal(size=24)

    def items() -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
        for i in range(24):
            torch.manual_seed(i)
            scale = 0.1 + i / 12
            state = {k: v * scale for k, v in build(factory).state_dict().items()}
            told = {"scale": scale, "luck": float(noise[i]), "place": "here", "finite": True}
            yield Entry(network=str(i), checkpoint="0", factory=factory, properties=told), state

    folder = tmp_path_factory.mktemp("kinds") / "zoo"
    write_zoo(folder, "zoo", items())
    return Zoo.open(folder)


def test_the_zoo_that_networks_are_like_is_named_on_the_command_line(
    zoo: Zoo, tmp_path: Path
) -> None:
    negative = (
        (
            replace(x, properties={**x.properties, "scale": -x.properties["scale"]}),
            zoo.state_dict(x),
        )
        for x in zoo.entries
    )
    write_zoo(tmp_path / "other", "other", negative)
    heads, source = tmp_path / "heads.safetensors", tmp_path / "net.safetensors"
    save_file(dict(zoo.state_dict(zoo.entries[20])), source)
    fit = ("heads", "fit", zoo.folder, tmp_path / "other", "-o", heads, "--property", "scale")
    _run(*fit, "--features", "statistics")
    assert json.loads(_run("heads", "show", heads, "--json"))[0]["zoos"] == ["other", "zoo"]
    asked = ("predict", source, "--heads", heads, "--json")
    values = {}
    for name in ("zoo", "other"):
        (told,) = json.loads(_run(*asked, "--like", name)).values()
        values[name] = told["scale"]["value"]
    (unsure,) = json.loads(_run(*asked)).values()
    assert values["zoo"] > 1 > -1 > values["other"]
    assert unsure["scale"]["interval"][0] < 0 < unsure["scale"]["interval"][1]
    done = CliRunner().invoke(sane_plugins, [*map(str, asked), "--like", "nowhere"])
    assert done.exit_code == 2
    assert "like 'nowhere': no head was fitted on a zoo of that name" in done.stderr
    assert "one of other, zoo is needed" in done.stderr


def test_a_run_over_a_folder_refuses_a_zoo_that_no_head_knows(
    two_zoos: KindsHead, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    heads = save_heads({"quality": two_zoos}, tmp_path / "heads.safetensors")
    run = (
        "run",
        "predict",
        tmp_path,
        "-o",
        tmp_path / "out",
        "--heads",
        heads,
        "--like",
        "nowhere",
    )
    done = CliRunner().invoke(sane_plugins, [str(x) for x in run])
    assert done.exit_code == 2
    assert "one of alike, opposite is needed" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_property_what_the_zoo_has_is_fitted_and_luck_is_warned_of(zoo: Zoo) -> None:
    events: list[Progress] = []
    done = fit_heads([zoo], embedded_sane(), FitOptions(**FEW), events.append)
    assert set(done.heads) == {"scale", "luck"}
    (warning,) = [x for x in done.notes if x.startswith("luck")]
    assert "R^2" in warning and "mean" in warning
    steps = [x for x in events if x.job == "fit scale"]
    assert [x.done for x in steps] == list(range(steps[0].total))
    assert fit_heads([zoo], embedded_sane(), FitOptions(properties=("scale",), **FEW)).heads


def test_columns_that_cannot_be_fitted_are_an_error_where_they_are_named(zoo: Zoo) -> None:
    with pytest.raises(ZooError, match="two classes"):
        fit_heads([zoo], embedded_sane(), FitOptions(properties=("place",), **FEW))


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(sane_plugins, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_of_an_unknown_kind_a_rank_is_told_and_no_number_without_force(tmp_path: Path) -> None:
    for i, width in enumerate((5, 5, 70)):
        torch.manual_seed(i)
        state = torch.nn.Sequential(
            torch.nn.Linear(9, width), torch.nn.Linear(width, 4)
        ).state_dict()
        save_file(state, tmp_path / f"{i}.safetensors")
    names = [str(tmp_path / f"{i}.safetensors") for i in range(3)]
    command = ("predict", *names, "--property", "test_accuracy", "--property", "act")
    told = json.loads(_run(*command, "--json"))
    assert all(x["test_accuracy"]["value"] is None for x in told.values())
    assert all(x["test_accuracy"]["interval"] is None for x in told.values())
    assert all(x["act"]["value"] is None for x in told.values())
    ranks = [(x["test_accuracy"]["rank"], x["test_accuracy"]["ranked"]) for x in told.values()]
    assert sorted(ranks[:2]) == [(1, 2), (2, 2)]
    assert ranks[2] == (None, None)  # one network alone
    table = _run(*command)
    assert "? rank 1 of 2" in table
    alone = _run("predict", names[2], "--property", "test_accuracy")
    assert "? cannot tell" in alone
    assert "rank 1" not in alone
    forced = json.loads(_run(*command, "--json", "--force"))
    assert all(0 <= x["test_accuracy"]["value"] <= 1 for x in forced.values())
    assert "? rank" not in _run(*command, "--force")
    first, *rows = _run(*command, "--csv", "--sort", "test_accuracy").splitlines()
    assert "test_accuracy_rank" in first
    assert len(rows) == 3
