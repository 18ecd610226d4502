"""Small regressors: fitted with scikit-learn, stored as plain arrays and run with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Array = npt.NDArray[Any]
Fit = Callable[[Array, Array], "tuple[Member, ...]"]
_KNOTS = 33
_EDGE = 1e-3
_PENALTIES = np.logspace(0, 5, 11)


@dataclass(frozen=True)
class Trees:
    """A sum of trees: `offset` plus `factor` times the sum of the leaves that a row falls into.

    `value` (nodes,), or (nodes, C) where each leaf has a share of each of C classes.

    Nodes of all trees lie behind one another; `left` and `right` count from their tree's root in `roots`
    and a leaf points at itself.
    """

    kind: ClassVar[str] = "trees"
    roots: Array
    left: Array
    right: Array
    feature: Array
    threshold: Array
    value: Array
    depth: Array
    offset_factor: Array

    def predict(self, x: Array) -> Array:
        """Predict (N,), or (N, C), for rows x (N, F) float32."""
        rows, at = np.arange(len(x))[:, None], np.zeros((len(x), len(self.roots)), dtype=np.int64)
        for _ in range(int(self.depth[0])):
            node = at + self.roots
            goes_left = x[rows, self.feature[node]] <= self.threshold[node]
            at = np.where(goes_left, self.left[node], self.right[node])
        offset, factor = self.offset_factor
        return np.asarray(offset + factor * self.value[at + self.roots].sum(1, dtype=np.float64))


@dataclass(frozen=True)
class Linear:
    """A linear model of features that are first mapped to normal scores through stored quantiles."""

    kind: ClassVar[str] = "linear"
    knots: Array
    weight: Array
    offset: Array

    def predict(self, x: Array) -> Array:
        """Predict rows x (N, F)."""
        return np.asarray(normal_scores(x, self.knots) @ self.weight + self.offset[0])


Member = Trees | Linear
MEMBER_TYPES: Mapping[str, type[Trees] | type[Linear]] = {"trees": Trees, "linear": Linear}


def predict(members: Sequence[Member], x: Array) -> Array:
    """Return the mean prediction (N,), or (N, C), of the members for rows x (N, F)."""
    return np.asarray(np.mean([member.predict(x) for member in members], axis=0))


def member_arrays(member: Member) -> dict[str, Array]:
    """Return the arrays that make the member up, by field."""
    return {f.name: getattr(member, f.name) for f in fields(member)}


def normal_scores(x: Array, knots: Array) -> Array:
    """Map each feature through its quantiles `knots` (Q, F) to a standard normal score, at most 3.1."""
    level = np.linspace(0, 1, len(knots))
    ranks = np.stack(
        [
            (np.interp(column, knot, level) - np.interp(-column, -knot[::-1], level) + 1) / 2
            for column, knot in zip(x.T, knots.T, strict=True)
        ],
        axis=1,
    )
    return np.asarray(ndtri(np.clip(ranks, _EDGE, 1 - _EDGE)))


def pack_trees(trees: Sequence[Any], offset: float, factor: float) -> Trees:
    """Turn scikit-learn's fitted trees (`.tree_`) into arrays, thresholds rounded down to float32.

    Scikit-learn compares float32 features with float64 thresholds; rounding down keeps every comparison.
    """
    parts = [tree.tree_ for tree in trees]
    leaf = [part.children_left < 0 for part in parts]
    own = [np.arange(part.node_count) for part in parts]
    exact = np.concatenate([part.threshold for part in parts])
    rounded = exact.astype(np.float32)
    rounded = np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    sizes = np.cumsum([0] + [part.node_count for part in parts[:-1]])

    def gather(name: str) -> Array:
        kept = [np.where(a, b, getattr(p, name)) for a, b, p in zip(leaf, own, parts, strict=True)]
        return np.concatenate(kept).astype(np.min_scalar_type(max(p.node_count for p in parts)))

    feature = np.concatenate([np.maximum(part.feature, 0) for part in parts])
    return Trees(
        sizes.astype(np.int64),
        gather("children_left"),
        gather("children_right"),
        feature.astype(np.uint16),
        rounded.astype(np.float32),
        np.concatenate([_leaves(part) for part in parts]).astype(np.float32),
        np.array([max(part.max_depth for part in parts)]),
        np.array([offset, factor]),
    )


def _leaves(part: Any) -> Array:
    """Return what each node says: a number (nodes,), or shares of classes (nodes, C)."""
    value: Array = part.value[:, 0]
    return value[:, 0] if value.shape[1] == 1 else value


def fit_ridge(x: Array, y: Array) -> tuple[Member, ...]:
    """Fit ridge regression on normal scores; the penalty is chosen by leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    knots = np.quantile(x, np.linspace(0, 1, _KNOTS), axis=0).astype(np.float32)
    model = RidgeCV(_PENALTIES).fit(normal_scores(x, knots), y)
    return (Linear(knots, model.coef_.astype(np.float32), np.array([model.intercept_])),)


def fit_boosting(x: Array, y: Array) -> tuple[Member, ...]:
    """Fit gradient boosting whose splits look at few features each, which suits many alike features."""
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(
        n_estimators=300,
        max_depth=5,
        learning_rate=0.05,
        subsample=0.5,
        max_features=0.05,
        min_samples_leaf=4,
        random_state=0,
    ).fit(x, y)
    return (pack_trees(model.estimators_.ravel(), float(y.mean()), model.learning_rate),)


def fit_forest(x: Array, y: Array) -> tuple[Member, ...]:
    """Fit extremely randomised trees."""
    from sklearn.ensemble import ExtraTreesRegressor

    model = ExtraTreesRegressor(48, max_features=0.5, min_samples_leaf=3, random_state=0).fit(x, y)
    return (pack_trees(model.estimators_, 0.0, 1 / len(model.estimators_)),)


def fit_classes(x: Array, classes: Array) -> tuple[Member, ...]:
    """Fit extremely randomised trees to class numbers (N,); what they predict are shares of classes."""
    from sklearn.ensemble import ExtraTreesClassifier

    few = min(x.shape[1], max(4, x.shape[1] // 10))
    model = ExtraTreesClassifier(48, max_features=few, min_samples_leaf=4, random_state=0)
    model.fit(x, classes)
    return (pack_trees(model.estimators_, 0.0, 1 / len(model.estimators_)),)


BASES: Mapping[str, Fit] = {"ridge": fit_ridge, "boosting": fit_boosting, "forest": fit_forest}
"""What is fitted; an average of several costs nothing more to try."""

REGRESSORS: Mapping[str, tuple[str, ...]] = {
    "ridge": ("ridge",),
    "boosting": ("boosting",),
    "forest": ("forest",),
    "boosting+forest": ("boosting", "forest"),
    "boosting+forest+ridge": ("boosting", "forest", "ridge"),
}
