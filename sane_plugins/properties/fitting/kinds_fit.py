"""Fit a head for each kind of networks among the samples, and for each zoo of a kind.

The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties.dataset import (
    STRUCTURE,
    FeatureDataset,
    distinct_structures,
    require_fittable,
)
from sane_plugins.properties.heads.kinds_head import RANKER_FEATURES, KindsHead
from sane_plugins.properties.heads.numeric_head import PropertyHead
from sane_plugins.properties.kinds import find_kinds
from sane_plugins.properties.regressors import Array, Member, fit_forest

FitOne = Callable[[FeatureDataset, Array], PropertyHead]
EXPERT_NETWORKS = 20
"""Networks from which a kind, or a zoo, has an expert of its own; kinds of fewer share one, fitted on all."""


def fit_kinds(
    name: str,
    samples: FeatureDataset,
    targets: Array,
    fit_one: FitOne,
    report: Report = silent,
) -> PropertyHead | KindsHead:
    """Fit a head, or, for samples of several kinds or zoos, an expert for each by `fit_one`, and a ranker.

    `fit_one` is `fit_head` with the property's name and its settings (`functools.partial`).
    """
    require_fittable(name, samples, targets)
    kinds = find_kinds(samples.features[STRUCTURE])
    zoos = np.asarray(samples.zoos or [""] * len(kinds))

    def is_large(rows: Array) -> bool:
        return len(set(np.asarray(samples.networks)[rows])) >= EXPERT_NETWORKS

    def fit(rows: Array) -> PropertyHead:
        return fit_one(samples.rows(rows), targets[rows])

    own = [rows for rows in _groups(kinds) if is_large(rows)]
    of_zoos = [part & rows for rows in own for part in _parts(zoos, rows) if is_large(part & rows)]
    everything = np.ones(len(kinds), dtype=bool)
    if not own or (len(np.unique(kinds)) == 1 and not of_zoos):
        return fit(everything)
    experts = [fit(rows) for rows in (*own, *of_zoos)]
    others = ~np.any(own, axis=0)
    if others.any():
        shared = fit(everything)
        experts.append(replace(shared, structure=distinct_structures(samples.rows(others))))
    report(Progress(job=f"fit {name}", done=0, total=1, note="ranks of other kinds"))
    like = [part & rows for rows in _groups(kinds) for part in _groups(zoos)]
    ranker = _fit_ranker(samples, targets, [rows for rows in like if rows.any()])
    return KindsHead(property=name, experts=tuple(experts), ranker=ranker)


def _groups(labels: Array) -> list[Array]:
    """Return for each label the mask (N,) of its rows."""
    return [labels == label for label in np.unique(labels)]


def _parts(labels: Array, rows: Array) -> list[Array]:
    """Return the mask of each label where there are several among the rows."""
    return _groups(labels) if len(np.unique(labels[rows])) > 1 else []


def _fit_ranker(
    samples: FeatureDataset, targets: Array, groups: Sequence[Array]
) -> tuple[Member, ...]:
    """Fit trees to the ranks of targets (N,) within each group, as normal scores."""
    if RANKER_FEATURES not in samples.features:
        return ()
    scores = np.zeros(len(targets))
    for rows in groups:
        scores[rows] = ndtri((rankdata(targets[rows]) - 0.5) / rows.sum())
    return fit_forest(samples.features[RANKER_FEATURES].astype(np.float32), scores)
