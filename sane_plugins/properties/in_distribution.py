"""In-distribution test: distance of a network to those a head was fitted on, and its conformal p-value.

The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_DIRECTIONS = 24
_PERCENT = 100
_HELD_OUT = 99
_FLOOR = 1e-3


@dataclass(frozen=True)
class TrainingSupport:
    """Distribution of the training features: centre and spread (F,), main directions (F, R).

    `power` (R + 1,): variance along each direction and the mean square of what they leave over.
    `held_out` (101,): percentiles of the distances of networks that a fold held out.
    """

    centre: Array
    spread: Array
    directions: Array
    power: Array
    held_out: Array

    def distance(self, x: Array) -> Array:
        """Return the squared distance (N,) of rows (N, F): Mahalanobis, and a residual."""
        z = np.arcsinh((x - self.centre) / self.spread)
        along = z @ self.directions
        residual = (z**2).mean(1) - (along**2).sum(1) / z.shape[1]
        return np.asarray((along**2 / self.power[:-1]).mean(1) + residual / self.power[-1])

    def typicality(self, x: Array) -> Array:
        """Return for rows (N, F) the share of held-out networks that were farther off, as a p-value is."""
        level = np.linspace(1, 0, _PERCENT + 1)
        return np.asarray(np.interp(self.distance(x), self.held_out, level))

    def contains(self, x: Array) -> Array:
        """Tell for rows (N, F) whether they are as near as 99 % of the held-out networks were."""
        return np.asarray(self.distance(x) <= self.held_out[_HELD_OUT])


def fit_support(x: Array, folds: Sequence[Array]) -> TrainingSupport:
    """Fit on rows (N, F); each fold holds some out, whose distances are the scale."""
    held_out = np.concatenate([_fit(x[~test], np.zeros(0)).distance(x[test]) for test in folds])
    return _fit(x, np.percentile(held_out, np.arange(_PERCENT + 1)))


def _fit(x: Array, held_out: Array) -> TrainingSupport:
    centre = np.median(x, axis=0)
    low, high = np.quantile(x, (0.25, 0.75), axis=0)
    spread = np.maximum((high - low) / 1.35, _FLOOR * (1 + np.abs(centre)))
    z = np.arcsinh((x - centre) / spread)
    _, values, directions = np.linalg.svd(z, full_matrices=False)
    kept = min(_DIRECTIONS, len(values) // 2)
    power = values**2 / len(z)
    residual = max(float(power[kept:].sum()) / z.shape[1], _FLOOR)
    parts = (
        centre,
        spread,
        directions[:kept].T,
        [*np.maximum(power[:kept], _FLOOR), residual],
        held_out,
    )
    # The order in memory decides how sums are rounded, and a file has rows.
    return TrainingSupport(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))
