"""Training data of property heads: features, the network of each row, and folds grouped by network.

scikit-learn's `GroupKFold` balances the number of rows per fold, ours the number of networks: using it would
change every fitted head.
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
CALIBRATION_FOLDS = 8
SELECTION_NETWORKS = 200
AUTO = "auto"
FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"sane": ("sane",), "statistics": ("statistics",), "both": ("sane", "statistics")}
)
STRUCTURE = "structure"
"""Tensor counts and size, which identify kinds of networks; not used by regressors."""
INVARIANCE: Mapping[str, str] = MappingProxyType(
    {"statistics": "construction", "sane": "canonical order"}
)
"""How each encoder's features are invariant to channel order: by construction, or by sorting channels."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FeatureDataset(ShortRepr):
    """Features (N, F) by encoder, and the network of each row; `zoos`, where known, names the zoo of each."""

    features: Mapping[str, Array]
    networks: Sequence[str]
    zoos: Sequence[str] = ()

    def rows(self, keep: Array) -> FeatureDataset:
        """Select rows by a mask or an index."""
        return FeatureDataset(
            features={name: x[keep] for name, x in self.features.items()},
            networks=list(np.asarray(self.networks)[keep]),
            zoos=list(np.asarray(self.zoos)[keep]) if self.zoos else (),
        )


def encoders_of(features: str) -> tuple[str, ...]:
    """Return the encoders of a feature set; the name of an encoder is the set of its features alone."""
    return FEATURES.get(features, (features,))


def stack_features(features: Mapping[str, Array], name: str) -> Array:
    """Concatenate the features (N, F) float32 of a feature set such as `both`."""
    stacked = np.concatenate([features[encoder] for encoder in encoders_of(name)], axis=1)
    limit = np.finfo(np.float32).max / 2
    return np.asarray(np.clip(stacked, -limit, limit).astype(np.float32))


def candidate_sets(samples: FeatureDataset, features: str) -> list[str]:
    """Return the feature sets to try: the given one, or with `auto` all that are available.

    Encoders of plugins are sets of their own.
    """
    others = [name for name in samples.features if name not in (*FEATURES, STRUCTURE)]
    if features not in (AUTO, *FEATURES, *others):
        raise UsageError(
            f"features '{features}'",
            "there is no such set",
            f"one of {', '.join((AUTO, *FEATURES))} is needed",
            "check the name",
        )
    requested = (*FEATURES, *others) if features == AUTO else (features,)
    return [name for name in requested if set(encoders_of(name)) <= set(samples.features)]


def group_folds(networks: Sequence[str], folds: int, seed: int) -> list[Array]:
    """Return held-out masks (N,), one per fold; all rows of a network are held out in the same fold."""
    names = np.unique(np.asarray(networks))
    order = np.random.default_rng(seed).permutation(len(names))
    return [np.isin(networks, names[order[i::folds]]) for i in range(folds)]


def selection_mask(networks: Sequence[str], seed: int) -> Array:
    """Return a mask (N,) of the rows used for model selection: those of at most 200 networks."""
    names = np.unique(np.asarray(networks))
    drawn = np.random.default_rng(seed).permutation(names)[:SELECTION_NETWORKS]
    return np.asarray(np.isin(networks, drawn))


def distinct_structures(samples: FeatureDataset) -> Array:
    """Return the distinct structures (S, 3) float32 among the networks."""
    return np.unique(samples.features[STRUCTURE].astype(np.float32), axis=0)


def require_fittable(name: str, samples: FeatureDataset, *targets: Array) -> None:
    """Raise `ZooError` if there are too few networks, or if any value is NaN or infinite."""
    for found, needed in _problems(samples, targets):
        raise ZooError(f"property '{name}'", found, needed, "choose other networks to fit on")


def _problems(samples: FeatureDataset, targets: Sequence[Array]) -> Iterator[tuple[str, str]]:
    networks = len(set(samples.networks))
    if networks < 2 * FOLDS:
        yield f"{networks} networks were given", f"{2 * FOLDS} are needed to choose and calibrate"
    if not all(np.isfinite(x).all() for x in [*targets, *samples.features.values()]):
        yield "a value is not finite", "features and measured values must be finite"
