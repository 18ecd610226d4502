"""Conformal intervals from errors on networks that were held out.

The method: docs/explanation/sane.md, section 9.2.
Checkpoints of one run are alike, so the run is the unit: each counts once, however many checkpoints it has,
and the unseen one counts as missed by any distance (Lee, Barber and Willett 2023, hierarchical conformal
prediction). Where each run has one checkpoint this is split-conformal prediction.

crepes and MAPIE take rows as exchangeable, which checkpoints of one run are not; for rows that are, what they
would replace is one sort and one quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sane_plugins.properties.regressors import Array

COVERAGE = 0.9
_KNOTS = 33
_NEAR = 40
_FLOOR = 0.1


@dataclass(frozen=True)
class Widths:
    """Half-widths (Q,) of intervals at predicted values `at` (Q,), linear in between."""

    at: Array
    half: Array

    def interpolate(self, predicted: Array) -> Array:
        """Return the half-width (N,) for each prediction (N,)."""
        return np.asarray(np.interp(predicted, self.at, self.half))


def conformal_radius(
    residuals: Array, coverage: float, networks: Sequence[str] | None = None
) -> float:
    """Return the radius that covers a row of a new network with at least this probability.

    residuals (N,): magnitudes on held-out rows of exchangeable networks; without names, each row is one.
    Infinite where there are too few networks to promise it.
    """
    _, run, sizes = np.unique(
        np.arange(len(residuals)) if networks is None else np.asarray(networks),
        return_inverse=True,
        return_counts=True,
    )
    order = np.argsort(residuals, kind="stable")
    mass = np.cumsum(1 / sizes[run[order]]) / (len(sizes) + 1)
    rank = int(np.searchsorted(mass, coverage - 1e-12))
    return float(residuals[order[rank]]) if rank < len(residuals) else float("inf")


def fit_widths(
    predicted: Array,
    errors: Array,
    folds: Sequence[Array],
    networks: Sequence[str],
    coverage: float = COVERAGE,
) -> Widths:
    """Fit half-widths to held-out predictions (N,) and the magnitudes (N,) of their errors.

    The spread at a value is the mean error of the 40 predictions nearest to it. What 90 % of the errors do
    not exceed, divided by the spread that the other folds give, is what every spread is multiplied with.
    """
    relative = np.zeros(len(errors))
    for test in folds:
        spread = _spread(predicted[~test], errors[~test])
        relative[test] = errors[test] / spread.interpolate(predicted[test])
    spread = _spread(predicted, errors)
    return Widths(spread.at, spread.half * conformal_radius(relative, coverage, networks))


def _spread(predicted: Array, errors: Array) -> Widths:
    """Return the mean error of the nearest predictions at some of the values, never 0."""
    at = np.unique(np.quantile(predicted, np.linspace(0, 1, _KNOTS)))
    near = min(_NEAR, len(errors))
    chosen = np.argsort(np.abs(at[:, None] - predicted), axis=1, kind="stable")[:, :near]
    floor = _FLOOR * float(np.median(errors)) + np.finfo(np.float32).tiny
    return Widths(at, errors[chosen].mean(1) + floor)
