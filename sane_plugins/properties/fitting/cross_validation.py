"""Choose what a numeric head reads and how it predicts, by cross-validation grouped by network.

The set of features is chosen first, with the two quick regressors; then the regressor that reads it. The
held-out predictions that choose the regressor calibrate intervals too, so that nothing is fitted twice.
The method: docs/explanation/sane.md, section 9.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sane_plugins.progress import Progress, Report
from sane_plugins.properties import regressors
from sane_plugins.properties.dataset import (
    CALIBRATION_FOLDS,
    FOLDS,
    FeatureDataset,
    candidate_sets,
    group_folds,
    selection_mask,
    stack_features,
)
from sane_plugins.properties.regressors import BASES, REGRESSORS, Array, Member

MEAN = "mean"
SHRUNK = " shrunk"
"""Appended to the name of a regressor whose predictions are drawn towards the mean."""
SHIPPED = "shipped"
_QUICK = ("ridge", "forest")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A fitted head for the same property: the features that it reads, and its members."""

    features: str
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The chosen features and regressor, its members, and its held-out predictions (N,) by `folds`.

    `scores` are the cross-validated R^2 of all candidates; that of the mean is among them.
    """

    features: str
    regressor: str
    members: tuple[Member, ...]
    held_out: Array
    folds: Sequence[Array]
    scores: Mapping[str, float]


class _Steps:
    """Reports each fit of a cross-validation as a step."""

    def __init__(self, report: Report, job: str, total: int) -> None:
        self._report, self._job, self._total, self._done = report, job, total, 0

    def __call__(self, note: str) -> None:
        self._report(Progress(job=self._job, done=self._done, total=self._total, note=note))
        self._done += 1


def choose_model(
    name: str,
    samples: FeatureDataset,
    targets: Array,
    *,
    seed: int,
    report: Report,
    features: str,
    priors: Sequence[Prior] = (),
) -> Model:
    """Choose features and regressor of a property, and fit it to all samples.

    The mean, the chosen regressor drawn towards it, and each prior brought to the targets by a line are
    candidates as well. Where no candidate has an R^2 above 0, it is the mean.
    """
    names = candidate_sets(samples, features)
    folds = group_folds(samples.networks, CALIBRATION_FOLDS, seed)
    fits = (len(names) > 1) * len(names) * len(_QUICK) * FOLDS + len(BASES) * len(folds) + 1
    step = _Steps(report, f"fit {name}", fits)
    scores = _scores_of_sets(samples, targets, names, seed, step) if len(names) > 1 else {}
    chosen = _best(scores).rsplit("/", 1)[0] if scores else names[0]
    x = stack_features(samples.features, chosen)
    bases = {
        base: held_out_predictions(x, targets, folds, base, step, f"{chosen}/{base}")
        for base in BASES
    }
    held_out = {f"{chosen}/{key}": p for key, p in _averages(bases).items()}
    best = _best({key: _r2(targets, p) for key, p in held_out.items()})
    held_out[best + SHRUNK] = _cross_fitted_line(held_out[best], targets, folds, most=1.0)
    held_out[MEAN] = _cross_fitted_line(np.zeros(len(targets)), targets, folds)
    usable = {f"{p.features}/{SHIPPED} {i}": p for i, p in enumerate(priors)}
    told = {
        key: regressors.predict(p.members, stack_features(samples.features, p.features))
        for key, p in usable.items()
    }
    held_out |= {key: _cross_fitted_line(p, targets, folds) for key, p in told.items()}
    scores |= {key: _r2(targets, p) for key, p in held_out.items()}
    winner = max(held_out, key=lambda key: scores[key])
    if scores[winner] <= 0:
        winner = MEAN
    step("the chosen one")
    if winner in usable:
        members = regressors.recalibrated(usable[winner].members, *_line(told[winner], targets))
        chosen = usable[winner].features
    elif winner == MEAN:
        members = regressors.constant(float(targets.mean()), x.shape[1])
    else:
        members = fit_members(best.rsplit("/", 1)[1], x, targets)
        if winner.endswith(SHRUNK):
            members = regressors.recalibrated(members, *_line(held_out[best], targets, 1.0))
    return Model(
        features=chosen,
        regressor=winner.rsplit("/", 1)[-1],
        members=members,
        held_out=held_out[winner],
        folds=folds,
        scores=scores,
    )


def fit_members(regressor: str, x: Array, y: Array) -> tuple[Member, ...]:
    """Fit the members of a regressor, given by name."""
    return tuple(member for base in REGRESSORS[regressor] for member in BASES[base](x, y))


def held_out_predictions(
    x: Array, y: Array, folds: Sequence[Array], base: str, step: _Steps, note: str
) -> Array:
    """Return what a base regressor predicts for the rows (N, F) of each fold, fitted on the others."""
    predicted = np.zeros(len(y))
    for test in folds:
        step(note)
        predicted[test] = regressors.predict(BASES[base](x[~test], y[~test]), x[test])
    return predicted


def _scores_of_sets(
    samples: FeatureDataset, targets: Array, names: Sequence[str], seed: int, step: _Steps
) -> dict[str, float]:
    """Return the R^2 of each set of features with each quick regressor, on at most 200 networks."""
    selected = selection_mask(samples.networks, seed)
    rows, y = samples.rows(selected), targets[selected]
    folds = group_folds(rows.networks, FOLDS, seed)
    scores: dict[str, float] = {}
    for name in names:
        x = stack_features(rows.features, name)
        bases = {
            base: held_out_predictions(x, y, folds, base, step, f"{name}/{base}") for base in _QUICK
        }
        scores |= {f"{name}/{key}": _r2(y, p) for key, p in _averages(bases).items()}
    return scores


def _averages(bases: Mapping[str, Array]) -> dict[str, Array]:
    """Return the predictions (N,) of every regressor whose bases are there."""
    return {
        name: np.mean([bases[part] for part in parts], axis=0)
        for name, parts in REGRESSORS.items()
        if set(parts) <= set(bases)
    }


def _cross_fitted_line(
    predicted: Array, y: Array, folds: Sequence[Array], most: float = np.inf
) -> Array:
    """Return predictions (N,) brought to the targets by a line that is fitted on the other folds."""
    brought = np.zeros(len(y))
    for test in folds:
        slope, offset = _line(predicted[~test], y[~test], most)
        brought[test] = offset + slope * predicted[test]
    return brought


def _line(predicted: Array, y: Array, most: float = np.inf) -> tuple[float, float]:
    """Return slope, from 0 to `most`, and offset of the line of least squares."""
    centred = predicted - predicted.mean()
    power = float(centred @ centred)
    slope = float(np.clip(centred @ y / power, 0.0, most)) if power > 0 else 0.0
    return slope, float(y.mean() - slope * predicted.mean())


def _best(scores: Mapping[str, float]) -> str:
    return max(scores, key=lambda key: scores[key])


def _r2(targets: Array, predicted: Array) -> float:
    return 1 - float(((predicted - targets) ** 2).mean()) / (float(targets.var()) or 1.0)
