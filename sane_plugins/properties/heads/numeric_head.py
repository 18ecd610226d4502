"""Numeric property heads: a scalar regressed from a network's features, with a conformal interval.

Feature set and regressor are chosen by cross-validation grouped by network (`cross_validation`). Held-out
residuals of the chosen model calibrate a conformal interval.
The method: docs/explanation/sane.md, sections 9.1 and 9.2.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from sane_plugins.progress import Report, silent
from sane_plugins.properties import regressors
from sane_plugins.properties.dataset import (
    AUTO,
    FOLDS,
    STRUCTURE,
    FeatureDataset,
    distinct_structures,
    encoders_of,
    group_folds,
    require_fittable,
    stack_features,
)
from sane_plugins.properties.estimates import Estimate
from sane_plugins.properties.fitting.cross_validation import Prior, choose_model
from sane_plugins.properties.heads.conformal import Widths, fit_widths
from sane_plugins.properties.heads.head import Head
from sane_plugins.properties.heads.in_distribution import fit_support
from sane_plugins.properties.regressors import Array

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
            score=float(np.nan_to_num(self._standardized(raw)[0])),
            structure=tuple(map(float, features[STRUCTURE])),
        )

    def _standardized(self, raw: Array) -> Array:
        """Return predictions (N,) in deviations from the mean of held-out ones: an order, and no value."""
        usual = self.widths.at
        # The numbers are a file's, and their squares may overflow; what is no number is told as 0.
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray((raw - usual.mean()) / (float(usual.std()) or 1.0))

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
    priors: Sequence[Prior] = (),
) -> PropertyHead:
    """Fit a head: choose features and regressor by grouped cross-validation, then refit on all samples.

    targets (N,) in the property's unit. `features` fixes the feature set, `bounds` the range of the
    property. `priors` are other heads that may be recalibrated instead. Raises `ZooError` for too few
    networks, and for targets or features that are not finite.
    """
    require_fittable(name, samples, targets)
    model = choose_model(
        name, samples, targets, seed=seed, report=report, features=features, priors=priors
    )
    unit, *default_bounds = PROPERTIES.get(name, ("", -np.inf, np.inf))
    low, high = bounds or default_bounds
    errors = np.abs(np.clip(model.held_out, low, high) - targets)
    x = stack_features(samples.features, model.features)
    return PropertyHead(
        property=name,
        unit=unit,
        low=low,
        high=high,
        features=model.features,
        regressor=model.regressor,
        members=model.members,
        widths=fit_widths(model.held_out, errors, model.folds, samples.networks),
        support=fit_support(x, group_folds(samples.networks, FOLDS, seed)),
        scores=model.scores,
        sane=sane if "sane" in encoders_of(model.features) else "",
        structure=distinct_structures(samples),
        zoos=tuple(dict.fromkeys(samples.zoos)),
    )
