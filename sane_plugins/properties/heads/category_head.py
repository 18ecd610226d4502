"""Heads for categories, such as activation or optimiser: class probabilities and a conformal prediction set.

Features are chosen by cross-validation grouped by network, as for numeric heads. The set contains every class
at least as probable as the true class was for 90 % of held-out networks.
The method: docs/explanation/sane.md, section 9.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sane_plugins.errors import ZooError
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties import regressors
from sane_plugins.properties.dataset import (
    AUTO,
    FOLDS,
    FeatureDataset,
    candidate_sets,
    distinct_structures,
    encoders_of,
    group_folds,
    require_fittable,
    stack_features,
)
from sane_plugins.properties.estimates import CategoryEstimate
from sane_plugins.properties.heads.conformal import COVERAGE, conformal_radius
from sane_plugins.properties.heads.head import Head
from sane_plugins.properties.heads.in_distribution import fit_support
from sane_plugins.properties.regressors import Array, fit_classes

FOREST = "forest"
MAJORITY = "majority"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CategoryHead(Head):
    """Head for one category: its classes, and the minimum probability (1 - `radius`) of the set's classes.

    `scores` are cross-validated balanced accuracies, including that of always predicting the most frequent
    class, `majority`.
    """

    score: ClassVar[str] = "share told right"
    classes: tuple[str, ...]
    radius: float

    def predict(self, features: Mapping[str, Array]) -> Array:
        """Return the probabilities (N, C) of the classes from features (N, F) by encoder."""
        return self._probabilities(stack_features(features, self.features))

    def estimate(self, features: Mapping[str, Array]) -> CategoryEstimate:
        """Estimate the class of one network from its features (F,) by encoder, and its structure."""
        class_probabilities, comparison = (
            self._probabilities(self.feature_row(features))[0],
            self.compare(features),
        )
        order = np.argsort(-class_probabilities, kind="stable")
        prediction_set = [
            self.classes[i]
            for n, i in enumerate(order)
            if not n or 1 - class_probabilities[i] <= self.radius
        ]
        return CategoryEstimate(
            property=self.property,
            value=self.classes[order[0]],
            set=tuple(prediction_set),
            probabilities={
                name: float(x) for name, x in zip(self.classes, class_probabilities, strict=True)
            },
            coverage=self.coverage,
            in_distribution=comparison.in_distribution,
            features=self.features,
            typicality=comparison.typicality,
        )

    def _probabilities(self, x: Array) -> Array:
        return regressors.predict(self.members, x)


def fit_category(
    name: str,
    samples: FeatureDataset,
    labels: Sequence[str],
    *,
    sane: str = "",
    seed: int = 0,
    report: Report = silent,
    features: str = AUTO,
) -> CategoryHead:
    """Fit a head to labels (N,): choose features by grouped cross-validation, then refit on all samples.

    Raises `ZooError` for too few networks, features that are not finite, and a class that is missing from
    the training part of any fold.
    """
    require_fittable(name, samples)
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    folds = group_folds(samples.networks, FOLDS, seed)
    _require_classes(name, samples, classes, numbers, folds)
    held_out: dict[str, Array] = {}
    names = candidate_sets(samples, features)
    for i, kind in enumerate(names):
        report(Progress(job="choose features", done=i, total=len(names), note=f"{name}: {kind}"))
        held_out[kind] = _held_out_probabilities(
            stack_features(samples.features, kind), numbers, folds
        )
    scores = {
        kind: _balanced_accuracy(numbers, shares.argmax(1)) for kind, shares in held_out.items()
    }
    best = max(scores, key=lambda kind: scores[kind])
    x, residuals = (
        stack_features(samples.features, best),
        1 - held_out[best][np.arange(len(numbers)), numbers],
    )
    return CategoryHead(
        property=name,
        classes=tuple(map(str, classes)),
        features=best,
        members=fit_classes(x, numbers),
        radius=conformal_radius(residuals, COVERAGE, samples.networks),
        support=fit_support(x, folds),
        structure=distinct_structures(samples),
        zoos=tuple(dict.fromkeys(samples.zoos)),
        scores={f"{kind}/{FOREST}": score for kind, score in scores.items()}
        | {MAJORITY: 1 / len(classes)},
        sane=sane if "sane" in encoders_of(best) else "",
    )


def _held_out_probabilities(x: Array, numbers: Array, folds: Sequence[Array]) -> Array:
    probabilities = np.zeros((len(numbers), numbers.max() + 1))
    for test in folds:
        probabilities[test] = regressors.predict(fit_classes(x[~test], numbers[~test]), x[test])
    return probabilities


def _balanced_accuracy(truth: Array, predicted: Array) -> float:
    """Return the mean recall over the classes."""
    return float(
        np.mean([(predicted[truth == number] == number).mean() for number in np.unique(truth)])
    )


def _require_classes(
    name: str, samples: FeatureDataset, classes: Array, numbers: Array, folds: Sequence[Array]
) -> None:
    for number, label in enumerate(classes):
        if any(not (numbers[~test] == number).any() for test in folds):
            count = len(set(np.asarray(samples.networks)[numbers == number]))
            raise ZooError(
                f"property '{name}'",
                f"only {count} networks have '{label}'",
                "each class needs networks in several folds",
                "add networks, or leave these out",
            )
    if len(classes) < 2:
        raise ZooError(
            f"property '{name}'",
            f"every network has '{classes[0]}'",
            "two classes are needed",
            "choose another property",
        )
