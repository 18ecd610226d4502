"""In-distribution test: distance of a network to the training networks, and its conformal p-value.

The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_MAX_DIRECTIONS = 24
_PERCENTILES = 100
_CONTAINED_PERCENTILE = 99
_EPSILON = 1e-3
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TrainingSupport:
    """Distribution of the training features: centre and spread (F,), principal directions (F, R).

    `power` (R + 1,): variance along each direction, and the mean square of the residual.
    `held_out` (101,): percentiles of the distances of held-out networks.
    """

    centre: Array
    spread: Array
    directions: Array
    power: Array
    held_out: Array

    def distance(self, x: Array) -> Array:
        """Return the squared distance (N,) of rows (N, F): Mahalanobis distance plus scaled residual.

        What overflows is infinitely far.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            z = np.arcsinh((x - self.centre) / self.spread)
            along = z @ self.directions
            residual = (z**2).mean(1) - (along**2).sum(1) / z.shape[1]
            distance = (along**2 / self.power[:-1]).mean(1) + residual / self.power[-1]
        return np.where(np.isnan(distance), np.inf, distance)

    def typicality(self, x: Array) -> Array:
        """Return for rows (N, F) the fraction of held-out networks farther away, a conformal p-value."""
        level = np.linspace(1, 0, _PERCENTILES + 1)
        return np.asarray(np.interp(self.distance(x), self.held_out, level))

    def relative_distance(self, row: Array) -> float:
        """Return the distance of a row (F,), in that of 99 % of held-out networks."""
        reach = max(float(self.held_out[_CONTAINED_PERCENTILE]), _SMALLEST)
        return float(self.distance(row[None])[0]) / reach

    def contains(self, x: Array) -> Array:
        """Return for rows (N, F) whether they are within the distance of 99 % of held-out networks."""
        return np.asarray(self.distance(x) <= self.held_out[_CONTAINED_PERCENTILE])


def fit_support(x: Array, folds: Sequence[Array]) -> TrainingSupport:
    """Fit on rows (N, F), with distances of held-out rows from cross-validation as reference."""
    held_out = np.concatenate([_fit(x[~test], np.zeros(0)).distance(x[test]) for test in folds])
    return _fit(x, np.percentile(held_out, np.arange(_PERCENTILES + 1)))


def _fit(x: Array, held_out: Array) -> TrainingSupport:
    centre = np.median(x, axis=0)
    low, high = np.quantile(x, (0.25, 0.75), axis=0)
    spread = np.maximum((high - low) / 1.35, _EPSILON * (1 + np.abs(centre)))
    z = np.arcsinh((x - centre) / spread)
    _, values, directions = np.linalg.svd(z, full_matrices=False)
    rank = min(_MAX_DIRECTIONS, len(values) // 2)
    power = values**2 / len(z)
    residual = max(float(power[rank:].sum()) / z.shape[1], _EPSILON)
    parts = (
        centre,
        spread,
        directions[:rank].T,
        [*np.maximum(power[:rank], _EPSILON), residual],
        held_out,
    )
    # Memory order affects the rounding of sums, and files are row-major.
    return TrainingSupport(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))
