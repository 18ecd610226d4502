"""Training data of property heads: features of networks, the run of each, and folds that keep runs whole.

scikit-learn's `GroupKFold` makes folds of equal numbers of rows, ours of equal numbers of networks: every
fitted head would change with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sane_plugins.display import ShortRepr
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.properties.regressors import Array

FOLDS = 5
CALIBRATION_FOLDS = 12
SELECTION_NETWORKS = 200
AUTO = "auto"
FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"sane": ("sane",), "statistics": ("statistics",), "both": ("sane", "statistics")}
)
STRUCTURE = "structure"
"""Features that no regressor reads: counts of tensors and size, which tell kinds of networks apart."""
INVARIANCE: Mapping[str, str] = MappingProxyType(
    {"statistics": "construction", "sane": "canonical order"}
)
"""How features of each encoder ignore the order of channels: they do not tell it, or sort channels."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FeatureDataset(ShortRepr):
    """Features (N, F) by encoder, and the network that each row is from."""

    features: Mapping[str, Array]
    networks: Sequence[str]

    def rows(self, keep: Array) -> FeatureDataset:
        """Select rows by a mask or an index."""
        selected = {name: x[keep] for name, x in self.features.items()}
        return FeatureDataset(features=selected, networks=list(np.asarray(self.networks)[keep]))


def stack_features(features: Mapping[str, Array], name: str) -> Array:
    """Concatenate the features (N, F) float32 of a set such as `both`."""
    parts = np.concatenate([features[encoder] for encoder in FEATURES[name]], axis=1)
    top = np.finfo(np.float32).max / 2
    return np.asarray(np.clip(parts, -top, top).astype(np.float32))


def candidate_sets(samples: FeatureDataset, features: str) -> list[str]:
    """Return the sets of features to try: one, or with `auto` all that were measured."""
    if features not in (AUTO, *FEATURES):
        raise UsageError(
            f"features '{features}'",
            "there is no such set",
            f"one of {', '.join((AUTO, *FEATURES))} is needed",
            "check the name",
        )
    asked = FEATURES if features == AUTO else (features,)
    return [name for name in asked if set(FEATURES[name]) <= set(samples.features)]


def group_folds(networks: Sequence[str], folds: int, seed: int) -> list[Array]:
    """Return masks (N,) of held-out rows; each row is in one, and all rows of a network in the same."""
    names = np.unique(np.asarray(networks))
    order = np.random.default_rng(seed).permutation(len(names))
    return [np.isin(networks, names[order[i::folds]]) for i in range(folds)]


def calibration_folds(networks: Sequence[str], seed: int) -> list[Array]:
    """Return more folds where networks are few: a model of a fifth fewer errs more than the final one."""
    few = len(set(networks)) <= SELECTION_NETWORKS
    return group_folds(networks, CALIBRATION_FOLDS if few else FOLDS, seed)


def selection_mask(networks: Sequence[str], seed: int) -> Array:
    """Return a mask (N,) of the rows that models are selected on: all, or those of 200 networks."""
    names = np.unique(np.asarray(networks))
    drawn = np.random.default_rng(seed).permutation(names)[:SELECTION_NETWORKS]
    return np.asarray(np.isin(networks, drawn))


def distinct_structures(samples: FeatureDataset) -> Array:
    """Return the distinct structures (S, 3) float32 among the networks."""
    return np.unique(samples.features[STRUCTURE].astype(np.float32), axis=0)


def require_fittable(name: str, samples: FeatureDataset, *more: Array) -> None:
    """Raise `ZooError` for too few networks to choose and calibrate with, and for values not finite."""
    for found, needed in _problems(samples, more):
        raise ZooError(f"property '{name}'", found, needed, "choose other networks to fit on")


def _problems(samples: FeatureDataset, more: Sequence[Array]) -> Iterator[tuple[str, str]]:
    networks = len(set(samples.networks))
    if networks < 2 * FOLDS:
        yield f"{networks} networks were given", f"{2 * FOLDS} are needed to choose and calibrate"
    if not all(np.isfinite(x).all() for x in [*more, *samples.features.values()]):
        yield "a value is not finite", "features and measured values must be finite"
