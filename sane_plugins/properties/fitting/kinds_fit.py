"""Fit a head for each kind of networks among the samples.

The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

from collections.abc import Callable
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
"""Networks from which a kind has an expert of its own; kinds of fewer share one, fitted on all kinds."""


def fit_kinds(
    name: str,
    samples: FeatureDataset,
    targets: Array,
    fit_one: FitOne,
    report: Report = silent,
) -> PropertyHead | KindsHead:
    """Fit a head, or, for samples of several kinds, an expert for each by `fit_one`, and a ranker.

    `fit_one` is `fit_head` with the property's name and its settings (`functools.partial`).
    """
    require_fittable(name, samples, targets)
    kinds = _kinds_and_zoos(samples)

    def fit(rows: Array) -> PropertyHead:
        return fit_one(samples.rows(rows), targets[rows])

    own = [k for k in np.unique(kinds) if _network_count(samples, kinds == k) >= EXPERT_NETWORKS]
    others = ~np.isin(kinds, own)
    everything = np.ones(len(kinds), dtype=bool)
    if not own or len(np.unique(kinds)) == 1:
        return fit(everything)
    experts = [fit(kinds == kind) for kind in own]
    if others.any():
        shared = fit(everything)
        experts.append(replace(shared, structure=distinct_structures(samples.rows(others))))
    report(Progress(job=f"fit {name}", done=0, total=1, note="ranks of other kinds"))
    ranker = _fit_ranker(samples, targets, kinds)
    return KindsHead(property=name, experts=tuple(experts), ranker=ranker)


def _kinds_and_zoos(samples: FeatureDataset) -> Array:
    """Return the kind (N,) of each row, where zoos of one kind that can be told apart count as several kinds."""
    kinds = find_kinds(samples.features[STRUCTURE])
    if not len(samples.zoos):
        return kinds
    zoos, found = np.asarray(samples.zoos), kinds.copy()
    for kind in np.unique(kinds):
        masks = [(kinds == kind) & (zoos == zoo) for zoo in np.unique(zoos[kinds == kind])]
        large = [rows for rows in masks if _network_count(samples, rows) >= EXPERT_NETWORKS]
        if len(large) > 1 and _are_told_apart([samples.rows(rows) for rows in large]):
            for rows in large[1:]:
                found[rows] = found.max() + 1
    return found


def _network_count(samples: FeatureDataset, rows: Array) -> int:
    return len(set(np.asarray(samples.networks)[rows]))


def _fit_ranker(samples: FeatureDataset, targets: Array, kinds: Array) -> tuple[Member, ...]:
    """Fit trees to the ranks of targets (N,) within each kind, as normal scores."""
    if RANKER_FEATURES not in samples.features:
        return ()
    scores = np.zeros(len(targets))
    for kind in np.unique(kinds):
        of_kind = kinds == kind
        scores[of_kind] = ndtri((rankdata(targets[of_kind]) - 0.5) / of_kind.sum())
    return fit_forest(samples.features[RANKER_FEATURES].astype(np.float32), scores)
