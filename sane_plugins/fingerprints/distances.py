"""Distances between descriptors of channels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def distances(a: Array, b: Array) -> Array:
    """Return the distances (R, R') between rows of `a` (R, D) and of `b` (R', D)."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float32)


def nearest_other(a: Array) -> Array:
    """Return the distance (R,) of each row of `a` (R, D) to the nearest other one; infinity without one."""
    if len(a) < 2:
        return np.full(len(a), np.inf, np.float32)
    between = distances(a, a)
    np.fill_diagonal(between, np.inf)
    return np.asarray(between.min(1))
