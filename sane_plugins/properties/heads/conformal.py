"""Conformal intervals from errors on held-out networks.

The method: docs/explanation/sane.md, section 9.2.
Checkpoints of one run are correlated, so the run is the exchangeable unit: each run has the same weight,
however many checkpoints it has, and the unseen run counts as an infinite residual (Lee, Barber and Willett
2023, hierarchical conformal prediction). With one checkpoint per run this is split-conformal prediction.

crepes and MAPIE assume exchangeable rows, which checkpoints of one run are not; where rows are exchangeable,
they would only replace one sort and one quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sane_plugins.properties.regressors import Array

COVERAGE = 0.9
_KNOTS = 33
_NEIGHBORS = 40
_MIN_RELATIVE_SPREAD = 0.1


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
    """Return the radius that covers a row of a new network with probability at least `coverage`.

    residuals (N,): absolute errors on held-out rows; `networks` names the network of each row, by default
    every row is its own. Infinite if there are too few networks to guarantee the coverage.
    """
    _, run, sizes = np.unique(
        np.arange(len(residuals)) if networks is None else np.asarray(networks),
        return_inverse=True,
        return_counts=True,
    )
    order = np.argsort(residuals, kind="stable")
    cumulative_weight = np.cumsum(1 / sizes[run[order]]) / (len(sizes) + 1)
    rank = int(np.searchsorted(cumulative_weight, coverage - 1e-12))
    return float(residuals[order[rank]]) if rank < len(residuals) else float("inf")


def fit_widths(
    predicted: Array,
    errors: Array,
    folds: Sequence[Array],
    networks: Sequence[str],
    coverage: float = COVERAGE,
) -> Widths:
    """Fit half-widths to held-out predictions (N,) and their absolute errors (N,).

    The spread at a value is the mean error of the 40 nearest predictions. All spreads are multiplied by the
    conformal quantile of errors relative to the spread estimated on the other folds.
    """
    relative = np.zeros(len(errors))
    for test in folds:
        spread = _fit_spread(predicted[~test], errors[~test])
        relative[test] = errors[test] / spread.interpolate(predicted[test])
    spread = _fit_spread(predicted, errors)
    return Widths(spread.at, spread.half * conformal_radius(relative, coverage, networks))


def _fit_spread(predicted: Array, errors: Array) -> Widths:
    """Return the mean error of the nearest predictions at quantiles of the predictions, always positive."""
    at = np.unique(np.quantile(predicted, np.linspace(0, 1, _KNOTS)))
    neighbors = min(_NEIGHBORS, len(errors))
    nearest = np.argsort(np.abs(at[:, None] - predicted), axis=1, kind="stable")[:, :neighbors]
    floor = _MIN_RELATIVE_SPREAD * float(np.median(errors)) + np.finfo(np.float32).tiny
    return Widths(at, errors[nearest].mean(1) + floor)
