"""Numeric property heads: a scalar regressed from a network's features, with a conformal interval.

Feature set and regressor are chosen by cross-validation grouped by network. Held-out residuals of the chosen
model calibrate a conformal interval.
The method: docs/explanation/sane.md, sections 9.1 and 9.2.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties import regressors
from sane_plugins.properties.conformal import Widths, fit_widths
from sane_plugins.properties.dataset import (
    AUTO,
    FOLDS,
    FeatureDataset,
    calibration_folds,
    candidate_sets,
    distinct_structures,
    encoders_of,
    group_folds,
    require_fittable,
    selection_mask,
    stack_features,
)
from sane_plugins.properties.estimates import Estimate
from sane_plugins.properties.head import Head
from sane_plugins.properties.in_distribution import fit_support
from sane_plugins.properties.regressors import BASES, REGRESSORS, Array, Member

PROPERTIES: Mapping[str, tuple[str, float, float]] = MappingProxyType(
    {
        "test_accuracy": ("share", 0.0, 1.0),
        "train_accuracy": ("share", 0.0, 1.0),
        "gap": ("share", -1.0, 1.0),
        "epoch": ("epochs", 0.0, np.inf),
        "lr": ("", 0.0, np.inf),
        "wd": ("", 0.0, np.inf),
        "p": ("share", 0.0, 1.0),
    }
)
"""Unit and range of known properties; others have no unit and are unbounded unless bounds are given."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PropertyHead(Head):
    """Head for one numeric property: its unit and range, regressor, and interval widths."""

    score: ClassVar[str] = "R^2"
    unit: str
    low: float
    high: float
    regressor: str
    widths: Widths

    @builtins.property  # the field `property` shadows the builtin
    def radius(self) -> float:
        """Return the median half-width of the intervals."""
        return float(np.median(self.widths.half))

    def predict(self, features: Mapping[str, Array]) -> Array:
        """Predict (N,) from features (N, F) by encoder, clipped to the property's range."""
        return np.clip(
            self._unclipped(stack_features(features, self.features)), self.low, self.high
        )

    def intervals(self, features: Mapping[str, Array]) -> Array:
        """Return the interval bounds (N, 2) for features (N, F) by encoder."""
        return self._clipped_intervals(self._unclipped(stack_features(features, self.features)))

    def estimate(self, features: Mapping[str, Array]) -> Estimate:
        """Estimate the property of one network from its features (F,) by encoder, and its structure."""
        raw = self._unclipped(self.feature_row(features))
        (low, high), comparison = self._clipped_intervals(raw)[0], self.compare(features)
        return Estimate(
            property=self.property,
            value=float(np.clip(raw[0], self.low, self.high)),
            unit=self.unit,
            interval=(float(low), float(high)),
            coverage=self.coverage,
            in_distribution=comparison.in_distribution,
            features=self.features,
            typicality=comparison.typicality,
        )

    def _clipped_intervals(self, raw: Array) -> Array:
        half = self.widths.interpolate(raw)
        return np.asarray(np.clip(np.stack([raw - half, raw + half], 1), self.low, self.high))

    def _unclipped(self, x: Array) -> Array:
        return regressors.predict(self.members, x)


def fit_head(
    name: str,
    samples: FeatureDataset,
    targets: Array,
    *,
    sane: str = "",
    seed: int = 0,
    report: Report = silent,
    features: str = AUTO,
    bounds: tuple[float, float] | None = None,
) -> PropertyHead:
    """Fit a head: choose features and regressor by grouped cross-validation, then refit on all samples.

    targets (N,) in the property's unit. `features` fixes the feature set, `bounds` the range of the
    property. Raises `ZooError` for too few networks, and for targets or features that are not finite.
    """
    require_fittable(name, samples, targets)
    selected = selection_mask(samples.networks, seed)
    candidates = cross_predict(samples.rows(selected), targets[selected], seed, report, features)
    scores = {key: _r2(targets[selected], predicted) for key, predicted in candidates.items()}
    best, regressor = max(scores, key=lambda key: scores[key]).rsplit("/", 1)
    x, (unit, *default_bounds) = (
        stack_features(samples.features, best),
        PROPERTIES.get(name, ("", -np.inf, np.inf)),
    )
    low, high = bounds or default_bounds
    folds = calibration_folds(samples.networks, seed)
    held_out = _held_out_predictions(
        x, targets, folds, regressor, _report_folds(report, name, len(folds))
    )
    errors = np.abs(np.clip(held_out, low, high) - targets)
    return PropertyHead(
        property=name,
        unit=unit,
        low=low,
        high=high,
        features=best,
        regressor=regressor,
        members=fit_members(regressor, x, targets),
        widths=fit_widths(held_out, errors, folds, samples.networks),
        support=fit_support(x, group_folds(samples.networks, FOLDS, seed)),
        scores=scores,
        sane=sane if "sane" in encoders_of(best) else "",
        structure=distinct_structures(samples),
    )


def fit_members(regressor: str, x: Array, y: Array) -> tuple[Member, ...]:
    """Fit the members of a regressor, given by name."""
    return tuple(member for base in REGRESSORS[regressor] for member in BASES[base](x, y))


def cross_predict(
    samples: FeatureDataset,
    targets: Array,
    seed: int = 0,
    report: Report = silent,
    features: str = AUTO,
) -> dict[str, Array]:
    """Return held-out predictions (N,) of every `features/regressor`, with folds grouped by network."""
    folds = group_folds(samples.networks, FOLDS, seed)
    names = candidate_sets(samples, features)
    predictions: dict[str, Array] = {}
    for i, name in enumerate(names):
        report(Progress(job="choose features", done=i, total=len(names), note=name))
        x = stack_features(samples.features, name)
        bases = {base: _held_out_predictions(x, targets, folds, base) for base in BASES}
        for regressor, parts in REGRESSORS.items():
            predictions[f"{name}/{regressor}"] = np.mean([bases[part] for part in parts], axis=0)
    return predictions


def _held_out_predictions(
    x: Array,
    y: Array,
    folds: Sequence[Array],
    regressor: str,
    progress: Iterator[None] | None = None,
) -> Array:
    predicted = np.zeros(len(y))
    for test in folds:
        members = fit_members(regressor, x[~test], y[~test])
        predicted[test] = regressors.predict(members, x[test])
        next(progress or iter(()), None)
    return predicted


def _report_folds(report: Report, note: str, total: int) -> Iterator[None]:
    for done in range(1, total + 1):
        report(Progress(job="calibrate", done=done, total=total, note=note))
        yield


def _r2(targets: Array, predicted: Array) -> float:
    return 1 - float(((predicted - targets) ** 2).mean()) / (float(targets.var()) or 1.0)
