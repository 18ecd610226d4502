"""Is this network like those that a head was fitted on? A distance with a measured threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_DIRECTIONS = 24
_HELD_OUT = 0.99
_FLOOR = 1e-3


@dataclass(frozen=True)
class Support:
    """Where features lie: centre and spread (F,), main directions (F, R) and how far networks reach there.

    `power` (R + 1,): variance along each direction and the mean square of what they leave over.
    """

    centre: Array
    spread: Array
    directions: Array
    power: Array
    threshold: Array

    def distance(self, x: Array) -> Array:
        """Return the squared distance (N,) of rows (N, F): Mahalanobis in the main directions, and beside."""
        z = np.arcsinh((x - self.centre) / self.spread)
        along = z @ self.directions
        beside = (z**2).mean(1) - (along**2).sum(1) / z.shape[1]
        return np.asarray((along**2 / self.power[:-1]).mean(1) + beside / self.power[-1])

    def holds(self, x: Array) -> Array:
        """Tell for rows (N, F) whether they are as near as held-out networks were."""
        return np.asarray(self.distance(x) <= self.threshold[0])


def fit_support(x: Array, folds: Sequence[Array]) -> Support:
    """Fit on rows (N, F); the threshold covers 99 % of the rows of networks that a fold held out."""
    held_out = np.concatenate([_fit(x[~test], 0.0).distance(x[test]) for test in folds])
    return _fit(x, float(np.quantile(held_out, _HELD_OUT)))


def _fit(x: Array, threshold: float) -> Support:
    centre = np.median(x, axis=0)
    low, high = np.quantile(x, (0.25, 0.75), axis=0)
    spread = np.maximum((high - low) / 1.35, _FLOOR * (1 + np.abs(centre)))
    z = np.arcsinh((x - centre) / spread)
    _, values, directions = np.linalg.svd(z, full_matrices=False)
    kept = min(_DIRECTIONS, len(values) // 2)
    power = values**2 / len(z)
    beside = max(float(power[kept:].sum()) / z.shape[1], _FLOOR)
    parts = (
        centre,
        spread,
        directions[:kept].T,
        [*np.maximum(power[:kept], _FLOOR), beside],
        [threshold],
    )
    return Support(*(np.asarray(part, dtype=np.float32) for part in parts))
