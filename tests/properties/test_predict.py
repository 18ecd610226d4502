"""Property heads: honest intervals, no leak between networks, and nothing lost on disk."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor
from torch import nn

from sane_plugins.architectures import small_cnn
from sane_plugins.errors import SourceError, ZooError
from sane_plugins.features import statistics
from sane_plugins.features.layer_statistics import unterthiner_statistics
from sane_plugins.properties import (
    FeatureDataset,
    embedded_heads,
    estimate_record,
    fit_head,
    load_heads,
    predict,
    save_heads,
)
from sane_plugins.properties.dataset import STRUCTURE, group_folds
from sane_plugins.properties.heads.conformal import COVERAGE, conformal_radius
from sane_plugins.properties.regressors import pack_trees
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import from_module


@pytest.fixture(scope="module")
def samples() -> tuple[FeatureDataset, np.ndarray]:
    """Return features of 40 networks with three rows each, and a property that follows from them."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6))
    networks = [str(i // 3) for i in range(120)]
    structure = np.tile([5.0, 5.0, 11.0], (120, 1))
    named = {"statistics": features, STRUCTURE: structure}
    targets = features[:, 0] + 0.5 * features[:, 1] ** 2 + 0.1 * rng.normal(size=120)
    return FeatureDataset(features=named, networks=networks), targets


def test_packed_trees_predict_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)).astype(np.float32).round(2)
    y = x[:, 0] * x[:, 1] + np.sin(x[:, 2])
    boosting = GradientBoostingRegressor(n_estimators=40, random_state=0).fit(x, y)
    forest = ExtraTreesRegressor(20, random_state=0).fit(x, y)
    rows = rng.normal(size=(1000, 12)).astype(np.float32).round(2)
    for model, packed in (
        (boosting, pack_trees(boosting.estimators_.ravel(), y.mean(), boosting.learning_rate)),
        (forest, pack_trees(forest.estimators_, 0.0, 1 / 20)),
    ):
        np.testing.assert_allclose(packed.predict(rows), model.predict(rows), atol=1e-5)


def test_folds_keep_a_network_together(samples) -> None:
    networks = np.asarray(samples[0].networks)
    folds = group_folds(networks, 5, seed=0)
    assert np.sum(folds, axis=0).tolist() == [1] * len(networks)
    for fold in folds:
        assert not set(networks[fold]) & set(networks[~fold])


def test_a_head_learns_and_comes_back_from_disk(samples, tmp_path) -> None:
    known, targets = samples
    head = fit_head("quality", known, targets)
    values = head.predict(known.features)
    assert np.corrcoef(values, targets)[0, 1] > 0.8
    again = load_heads(save_heads({"quality": head}, tmp_path / "heads.safetensors"))["quality"]
    assert np.array_equal(again.predict(known.features), values)
    row = {name: x[0] for name, x in known.features.items()}
    assert again.estimate(row) == head.estimate(row)
    foreign = {**row, STRUCTURE: np.array([50.0, 5.0, 11.0])}
    assert head.estimate(row).in_distribution
    assert 0 < head.estimate(row).typicality <= 1
    guess = head.estimate(foreign)
    assert not guess.in_distribution
    told = estimate_record(guess)
    numbers = [x for x in (told["value"], told["score"]) if x is not None]
    assert not np.isclose(numbers, guess.value).any()  # a score is an order, not the guess
    assert head.estimate(foreign).typicality == 0


def test_conformal_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        residuals = np.abs(rng.standard_t(3, size=101))
        covered.append(residuals[-1] <= conformal_radius(residuals[:-1], COVERAGE))
    assert 0.86 <= np.mean(covered) <= 0.95
    assert conformal_radius(np.ones(5), COVERAGE) == np.inf


def test_too_few_networks_are_refused(samples) -> None:
    known, targets = samples
    with pytest.raises(ZooError, match="quality"):
        fit_head("quality", known.rows(np.arange(12)), targets[:12])


def test_channel_order_does_not_matter() -> None:
    torch.manual_seed(0)
    graph = from_module(small_cnn())
    known = permutation_groups(graph)
    mixed = permute(graph, random_permutations(known, torch.Generator().manual_seed(1)), known)
    torch.testing.assert_close(statistics(mixed), statistics(graph), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unterthiner_statistics(mixed), unterthiner_statistics(graph))


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(3, 2),
        nn.Embedding(9, 4),
        nn.LSTM(4, 5),
        nn.BatchNorm2d(3),
        small_cnn(3, 7),
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(30))),
    ],
    ids=lambda network: type(network).__name__,
)
def test_every_architecture_has_as_many_statistics(network: nn.Module) -> None:
    found = statistics(from_module(network))
    assert found.shape == statistics(from_module(small_cnn())).shape
    assert found.isfinite().all()


def test_nan_weights_are_not_predicted_from() -> None:
    network = small_cnn()
    nn.init.constant_(network[0].bias, float("nan"))
    with pytest.raises(SourceError, match="not finite"):
        predict(from_module(network))


def test_the_zoos_kind_is_known_and_others_are_not() -> None:
    torch.manual_seed(0)
    known = predict(from_module(small_cnn()))
    assert {"test_accuracy", "gap", "epoch"} <= set(known)
    assert all(estimate.in_distribution for estimate in known.values())
    for foreign in (nn.Linear(500, 400), nn.Sequential(nn.Linear(784, 400), nn.Linear(400, 10))):
        assert not any(e.in_distribution for e in predict(from_module(foreign)).values())


def test_embedded_heads_say_what_else_was_tried() -> None:
    heads = [x for head in embedded_heads().values() for x in getattr(head, "experts", (head,))]
    for head in heads:
        best = max(head.scores, key=lambda k: head.scores[k])
        assert best.partition("/")[0] == head.features
        assert {"sane", "statistics", "both"} <= {name.partition("/")[0] for name in head.scores}
