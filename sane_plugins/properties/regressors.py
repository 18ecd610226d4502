"""Small regressors, fitted with scikit-learn but stored as arrays and evaluated with numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Array = npt.NDArray[Any]
Fit = Callable[[Array, Array], "tuple[Member, ...]"]
_KNOTS = 33
_MIN_RANK = 1e-3
_PENALTIES = np.logspace(0, 5, 11)


@dataclass(frozen=True)
class Trees:
    """Tree ensemble: `offset` plus `factor` times the sum of the leaf values that a row reaches.

    `value` (nodes,), or (nodes, C) if leaves hold probabilities of C classes.

    The nodes of all trees are concatenated; `left` and `right` are relative to their tree's root in `roots`,
    and a leaf points to itself.
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
    """Linear model on features mapped to normal scores by stored quantiles."""

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
    """Return the members' mean prediction (N,), or (N, C), for rows x (N, F); infinite where it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.mean([member.predict(x) for member in members], axis=0))


def member_arrays(member: Member) -> dict[str, Array]:
    """Return a member's arrays by field name, as they are stored.

    A leaf of trees reads no threshold and another node no value: numbers of both are one array, `threshold`.
    """
    arrays: dict[str, Array] = {f.name: getattr(member, f.name) for f in fields(member)}
    if isinstance(member, Trees) and member.value.ndim == 1:
        own = np.arange(len(member.left))
        own -= np.repeat(member.roots, np.diff(member.roots, append=len(own)))
        arrays["threshold"] = np.where(member.left == own, arrays.pop("value"), member.threshold)
    return arrays


def member_from_arrays(kind: str, arrays: Mapping[str, Array]) -> Member:
    """Return a member of a kind; the inverse of `member_arrays`. Raises `KeyError` for a missing one."""
    made = MEMBER_TYPES[kind]
    if made is Trees and "value" not in arrays:
        arrays = {**arrays, "value": arrays["threshold"]}
    return made(*(arrays[f.name] for f in fields(made)))


def recalibrated(members: Sequence[Member], slope: float, offset: float) -> tuple[Member, ...]:
    """Return members whose mean prediction is `offset` plus `slope` times that of the given ones."""
    return tuple(_scaled(member, slope, offset) for member in members)


def _scaled(member: Member, slope: float, offset: float) -> Member:
    if isinstance(member, Trees):
        own_offset, factor = member.offset_factor
        line = np.array([offset + slope * own_offset, slope * factor])
        return replace(member, offset_factor=line)
    weight = (slope * member.weight).astype(np.float32)
    return replace(member, weight=weight, offset=offset + slope * member.offset)


def constant(value: float, width: int) -> tuple[Member, ...]:
    """Return members that predict one value from `width` features."""
    zeros = np.zeros((2, width), dtype=np.float32)
    return (Linear(zeros, zeros[0], np.array([value])),)


def normal_scores(x: Array, knots: Array) -> Array:
    """Map each feature through its quantiles `knots` (Q, F) to a standard normal score within +-3.1."""
    level = np.linspace(0, 1, len(knots))
    ranks = np.stack(
        [
            (np.interp(column, knot, level) - np.interp(-column, -knot[::-1], level) + 1) / 2
            for column, knot in zip(x.T, knots.T, strict=True)
        ],
        axis=1,
    )
    return np.asarray(ndtri(np.clip(ranks, _MIN_RANK, 1 - _MIN_RANK)))


def pack_trees(trees: Sequence[Any], offset: float, factor: float) -> Trees:
    """Convert scikit-learn's fitted trees (`.tree_`) to arrays, with thresholds rounded down to float32.

    Scikit-learn compares float32 features with float64 thresholds; rounding down preserves each comparison.
    """
    parts = [tree.tree_ for tree in trees]
    is_leaf = [part.children_left < 0 for part in parts]
    node_indices = [np.arange(part.node_count) for part in parts]
    thresholds = np.concatenate([part.threshold for part in parts])
    rounded = thresholds.astype(np.float32)
    rounded = np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    roots = np.cumsum([0] + [part.node_count for part in parts[:-1]])

    def gather(name: str) -> Array:
        kept = [
            np.where(a, b, getattr(p, name))
            for a, b, p in zip(is_leaf, node_indices, parts, strict=True)
        ]
        return np.concatenate(kept).astype(np.min_scalar_type(max(p.node_count for p in parts)))

    feature = np.concatenate([np.maximum(part.feature, 0) for part in parts])
    return Trees(
        roots.astype(np.int64),
        gather("children_left"),
        gather("children_right"),
        feature.astype(np.uint16),
        rounded.astype(np.float32),
        np.concatenate([_node_values(part) for part in parts]).astype(np.float32),
        np.array([max(part.max_depth for part in parts)]),
        np.array([offset, factor]),
    )


def _node_values(part: Any) -> Array:
    """Return the value of each node: a scalar (nodes,), or class probabilities (nodes, C)."""
    value: Array = part.value[:, 0]
    return value[:, 0] if value.shape[1] == 1 else value


def fit_ridge(x: Array, y: Array) -> tuple[Member, ...]:
    """Fit ridge regression on normal scores; the penalty is chosen by leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    knots = np.quantile(x, np.linspace(0, 1, _KNOTS), axis=0).astype(np.float32)
    model = RidgeCV(_PENALTIES).fit(normal_scores(x, knots), y)
    return (Linear(knots, model.coef_.astype(np.float32), np.array([model.intercept_])),)


def fit_boosting(x: Array, y: Array) -> tuple[Member, ...]:
    """Fit gradient boosting with few features per split, which suits many correlated features.

    Histograms (`HistGradientBoostingRegressor`) take as long with so few rows
    (benchmarks/properties-tried.md).
    """
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(
        n_estimators=150,
        max_depth=5,
        learning_rate=0.1,
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
    """Fit extremely randomised trees to class indices (N,); they predict class probabilities."""
    from sklearn.ensemble import ExtraTreesClassifier

    few = min(x.shape[1], max(4, x.shape[1] // 10))
    model = ExtraTreesClassifier(48, max_features=few, min_samples_leaf=4, random_state=0)
    model.fit(x, classes)
    return (pack_trees(model.estimators_, 0.0, 1 / len(model.estimators_)),)


BASES: Mapping[str, Fit] = {"ridge": fit_ridge, "boosting": fit_boosting, "forest": fit_forest}
"""Base regressors that are fitted; averages of several can be tried at no extra cost."""

REGRESSORS: Mapping[str, tuple[str, ...]] = {
    "ridge": ("ridge",),
    "boosting": ("boosting",),
    "forest": ("forest",),
    "forest+ridge": ("forest", "ridge"),
    "boosting+forest": ("boosting", "forest"),
    "boosting+forest+ridge": ("boosting", "forest", "ridge"),
}
