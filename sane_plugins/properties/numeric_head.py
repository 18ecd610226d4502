"""Numeric property heads: one number from the features of a network, with a conformal interval.

A head's features and regressor are chosen by cross-validation that keeps all checkpoints of a network
together. Held-out residuals of the chosen one calibrate a conformal interval.
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
    FEATURES,
    FOLDS,
    FeatureDataset,
    calibration_folds,
    candidate_sets,
    distinct_structures,
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
"""Unit and range of the properties that we know; others have no unit and any value, unless one is given."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PropertyHead(Head):
    """One numeric property: its unit and range, its regressor, and how wide its intervals are."""

    score: ClassVar[str] = "R^2"
    unit: str
    low: float
    high: float
    regressor: str
    widths: Widths

    @builtins.property  # a field of the base has that name
    def radius(self) -> float:
        """Return the half-width of a typical interval."""
        return float(np.median(self.widths.half))

    def predict(self, features: Mapping[str, Array]) -> Array:
        """Predict (N,) from features (N, F) by encoder, kept within the property's range."""
        return np.clip(self._raw(stack_features(features, self.features)), self.low, self.high)

    def intervals(self, features: Mapping[str, Array]) -> Array:
        """Return the ends (N, 2) of the intervals for features (N, F) by encoder."""
        return self._clipped_intervals(self._raw(stack_features(features, self.features)))

    def estimate(self, features: Mapping[str, Array]) -> Estimate:
        """Estimate the property of one network from its features (F,) by encoder, and its structure."""
        raw = self._raw(self.feature_row(features))
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

    def _raw(self, x: Array) -> Array:
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
    """Fit a head: choose features and regressor by grouped cross-validation, refit on everything.

    targets (N,) in the property's unit. `features` fixes the set of features, `bounds` the least and greatest
    value that the property can have. Raises `ZooError` for fewer networks than folds, and for targets or
    features that are not finite.
    """
    require_fittable(name, samples, targets)
    selected = selection_mask(samples.networks, seed)
    candidates = cross_predict(samples.rows(selected), targets[selected], seed, report, features)
    scores = {key: _r2(targets[selected], predicted) for key, predicted in candidates.items()}
    best, regressor = max(scores, key=lambda key: scores[key]).split("/")
    x, (unit, *known) = (
        stack_features(samples.features, best),
        PROPERTIES.get(name, ("", -np.inf, np.inf)),
    )
    low, high = bounds or known
    folds = calibration_folds(samples.networks, seed)
    held_out = _held_out(x, targets, folds, regressor, _counted(report, name, len(folds)))
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
        sane=sane if "sane" in FEATURES[best] else "",
        structure=distinct_structures(samples),
    )


def fit_members(regressor: str, x: Array, y: Array) -> tuple[Member, ...]:
    """Fit the members of a regressor by its name."""
    return tuple(member for base in REGRESSORS[regressor] for member in BASES[base](x, y))


def cross_predict(
    samples: FeatureDataset,
    targets: Array,
    seed: int = 0,
    report: Report = silent,
    features: str = AUTO,
) -> dict[str, Array]:
    """Return held-out predictions (N,) of every `features/regressor`; no network is on both sides."""
    folds = group_folds(samples.networks, FOLDS, seed)
    names = candidate_sets(samples, features)
    predictions: dict[str, Array] = {}
    for i, name in enumerate(names):
        report(Progress(job="choose features", done=i, total=len(names), note=name))
        x = stack_features(samples.features, name)
        bases = {base: _held_out(x, targets, folds, base) for base in BASES}
        for regressor, parts in REGRESSORS.items():
            predictions[f"{name}/{regressor}"] = np.mean([bases[part] for part in parts], axis=0)
    return predictions


def _held_out(
    x: Array,
    y: Array,
    folds: Sequence[Array],
    regressor: str,
    counted: Iterator[None] | None = None,
) -> Array:
    predicted = np.zeros(len(y))
    for test in folds:
        members = fit_members(regressor, x[~test], y[~test])
        predicted[test] = regressors.predict(members, x[test])
        next(counted or iter(()), None)
    return predicted


def _counted(report: Report, note: str, total: int) -> Iterator[None]:
    for done in range(1, total + 1):
        report(Progress(job="calibrate", done=done, total=total, note=note))
        yield


def _r2(targets: Array, predicted: Array) -> float:
    return 1 - float(((predicted - targets) ** 2).mean()) / (float(targets.var()) or 1.0)
