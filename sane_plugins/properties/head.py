"""Base of property heads: the features one reads, its members, and the support of its training data."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from sane_plugins.properties.conformal import COVERAGE
from sane_plugins.properties.dataset import FEATURES, INVARIANCE, STRUCTURE, stack_features
from sane_plugins.properties.in_distribution import TrainingSupport
from sane_plugins.properties.regressors import Array, Member

_MAX_DIFFERENCE = 1.0  # of log2 of the number of values


class InDistribution(NamedTuple):
    """Whether a network is like those a head was fitted on, and the share of them that were less typical."""

    in_distribution: bool
    typicality: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Head:
    """A property, the features it is read from, fitted members, and what the networks were like.

    `structure` (S, 3) has the kinds of networks it was fitted on. `scores` are the cross-validated scores of
    everything that was tried. `sane` is the fingerprint of the SANE whose features it reads, empty where it
    reads none.
    """

    score: ClassVar[str]
    """What the scores are, in words."""
    property: str
    features: str
    members: tuple[Member, ...]
    support: TrainingSupport
    scores: Mapping[str, float]
    structure: Array
    coverage: float = COVERAGE
    sane: str = ""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.property!r}, features={self.features!r},"
            f" members={len(self.members)}, sane={self.sane!r})"
        )

    @builtins.property  # a field has that name
    def encoders(self) -> tuple[str, ...]:
        """Return the names of the encoders whose features it reads."""
        return FEATURES[self.features]

    @builtins.property
    def invariance(self) -> dict[str, str]:
        """Return how the features of each encoder ignore the order of channels."""
        return {name: INVARIANCE[name] for name in self.encoders}

    def feature_row(self, features: Mapping[str, Array]) -> Array:
        """Return the features of one network (1, F) that the head reads, from those (F,) by encoder."""
        return stack_features({name: features[name][None] for name in self.encoders}, self.features)

    def compare(self, features: Mapping[str, Array]) -> InDistribution:
        """Compare a network with those the head was fitted on, by its features (F,) and structure (3,)."""
        x, known = self.feature_row(features), self._has_known_structure(features[STRUCTURE])
        return InDistribution(
            known and bool(self.support.contains(x)[0]),
            float(self.support.typicality(x)[0]) if known else 0.0,
        )

    def _has_known_structure(self, structure: Array) -> bool:
        """Tell whether a network has as many tensors as some it was fitted on, and about their size."""
        difference = np.abs(self.structure - structure)
        return bool((difference <= np.array([0, 0, _MAX_DIFFERENCE])).all(1).any())
