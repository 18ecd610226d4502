"""Which rows of features should be labelled next, so that a linear model of all of them is known best?

The method: docs/explanation/sane.md, section 18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from sane_plugins.properties.regressors import Array, normal_scores

MAX_COMPONENTS = 64
NOISE = 0.03  # variance of what features do not tell, beside that of what they tell
_KNOTS = 33
_OVERSAMPLING = 2  # rows that are chosen before half of them are taken back


def embed_rows(features: Array) -> Array:
    """Return features (N, F) as components (N, D) of mean square length about 1, an intercept among them.

    They are the principal components of normal scores, the input of the linear head.
    """
    knots = np.quantile(features, np.linspace(0, 1, _KNOTS), axis=0)
    scores = normal_scores(features, knots)
    scores = scores - scores.mean(0)
    left, lengths, _ = np.linalg.svd(scores, full_matrices=False)
    components = (left * lengths)[:, :MAX_COMPONENTS]
    scale = np.sqrt((components**2).sum(1).mean()) or 1.0
    return np.column_stack([np.ones(len(features)), components / scale])


def bait(x: Array, measured: Sequence[int], count: int) -> list[int]:
    """Return rows in the order in which each lowers the mean variance of predictions most (BAIT).

    Greedily forward to more rows than are wanted, then backward, as Ash et al. (2021) do; with a linear model
    and squared error their Fisher matrix is that of the features.
    """
    fisher = x.T @ x / len(x)
    inverse = _inverse(x, measured)
    free = _free(x, measured)
    chosen: list[int] = []
    for _ in range(min(_OVERSAMPLING * count, int(free.sum()))):
        gain, leverage = _change(x, inverse, fisher)
        best = int(np.argmax(np.where(free, gain / (1 + leverage), -np.inf)))
        inverse = _updated(inverse, x[best], 1.0)
        free[best] = False
        chosen.append(best)
    while len(chosen) > count:
        gain, leverage = _change(x[chosen], inverse, fisher)
        worst = int(np.argmin(gain / np.maximum(1 - leverage, 1e-12)))
        inverse = _updated(inverse, x[chosen.pop(worst)], -1.0)
    return chosen


def determinant(x: Array, measured: Sequence[int], count: int) -> list[int]:
    """Return rows in the order in which each raises the determinant of the Fisher matrix most."""
    inverse, free = _inverse(x, measured), _free(x, measured)
    chosen: list[int] = []
    for _ in range(min(count, int(free.sum()))):
        leverage = ((x @ inverse) * x).sum(1)
        best = int(np.argmax(np.where(free, leverage, -np.inf)))
        inverse = _updated(inverse, x[best], 1.0)
        free[best] = False
        chosen.append(best)
    return chosen


def farthest(x: Array, measured: Sequence[int], count: int) -> list[int]:
    """Return rows in the order in which each is farthest from all before it (a coreset by k centres)."""
    free = _free(x, measured)
    distance = ((x - x.mean(0)) ** 2).sum(1)
    if len(measured):
        distance = np.full(len(x), np.inf)
        for i in measured:
            distance = np.minimum(distance, ((x - x[i]) ** 2).sum(1))
    chosen: list[int] = []
    for step in range(min(count, int(free.sum()))):
        best = int(np.argmax(np.where(free, distance, -np.inf)))
        free[best] = False
        chosen.append(best)
        to_best = ((x - x[best]) ** 2).sum(1)
        is_first = not step and not len(measured)
        distance = to_best if is_first else np.minimum(distance, to_best)
    return chosen


def centres(x: Array, measured: Sequence[int], count: int) -> list[int]:
    """Return the rows nearest the centres of clusters of unmeasured rows, the largest cluster first."""
    from sklearn.cluster import KMeans

    free = np.flatnonzero(_free(x, measured))
    count = min(count, len(free))
    if not count:
        return []
    clusters = KMeans(count, n_init=2, random_state=0).fit(x[free])
    sizes = np.bincount(clusters.labels_, minlength=count)
    chosen: list[int] = []
    for cluster in np.argsort(-sizes, kind="stable"):
        members = free[clusters.labels_ == cluster]
        distance = ((x[members] - clusters.cluster_centers_[cluster]) ** 2).sum(1)
        chosen += [int(members[np.argmin(distance)])] if len(members) else []
    return chosen


Criterion = Callable[[Array, Sequence[int], int], list[int]]
CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {"bait": bait, "determinant": determinant, "farthest": farthest, "centres": centres}
)
"""Ways to choose: rows (N, D), those that are measured, and how many; they return the rows to measure."""


def _free(x: Array, measured: Sequence[int]) -> Array:
    free = np.ones(len(x), dtype=bool)
    free[list(measured)] = False
    return free


def _inverse(x: Array, measured: Sequence[int]) -> Array:
    """Return the covariance (D, D) of the model's weights after the measured rows."""
    known = x[list(measured)]
    return np.asarray(np.linalg.inv(NOISE * np.eye(x.shape[1]) + known.T @ known))


def _change(x: Array, inverse: Array, fisher: Array) -> tuple[Array, Array]:
    """Return what a row changes the mean variance by (N,), but for a factor, and its own variance (N,)."""
    solved = x @ inverse
    return ((solved @ fisher) * solved).sum(1), (solved * x).sum(1)


def _updated(inverse: Array, row: Array, sign: float) -> Array:
    """Return the covariance after a row was added (1) or taken away (-1)."""
    solved = inverse @ row
    return np.asarray(inverse - sign * np.outer(solved, solved) / (1 + sign * (solved @ row)))
