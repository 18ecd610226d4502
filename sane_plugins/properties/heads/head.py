"""Base class of property heads: their features, fitted members and training distribution."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from sane_plugins.properties.dataset import INVARIANCE, STRUCTURE, encoders_of, stack_features
from sane_plugins.properties.heads.conformal import COVERAGE
from sane_plugins.properties.heads.in_distribution import TrainingSupport
from sane_plugins.properties.kinds import is_alike
from sane_plugins.properties.regressors import Array, Member


class InDistribution(NamedTuple):
    """Whether a network resembles the training networks, and the fraction of them less typical than it."""

    in_distribution: bool
    typicality: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Head:
    """A property, its feature set, fitted members, and a description of the training networks.

    `structure` (S, 3) holds the distinct structures of the training networks. `scores` are the
    cross-validated scores of all candidates. `sane` is the fingerprint of the SANE whose features it uses,
    empty if it uses none. `zoos` are the names of the zoos that it was fitted on, where known.
    """

    score: ClassVar[str]
    """Name of the score."""
    property: str
    features: str
    members: tuple[Member, ...]
    support: TrainingSupport
    scores: Mapping[str, float]
    structure: Array
    coverage: float = COVERAGE
    sane: str = ""
    zoos: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.property!r}, features={self.features!r},"
            f" members={len(self.members)}, sane={self.sane!r})"
        )

    @builtins.property  # the field `property` shadows the builtin
    def encoders(self) -> tuple[str, ...]:
        """Return the names of the encoders whose features the head uses."""
        return encoders_of(self.features)

    @builtins.property
    def invariance(self) -> dict[str, str]:
        """Return how the features of each encoder are invariant to channel order."""
        return {name: INVARIANCE.get(name, "not known") for name in self.encoders}

    def feature_row(self, features: Mapping[str, Array]) -> Array:
        """Return the head's input features (1, F) of one network, from features (F,) by encoder."""
        return stack_features({name: features[name][None] for name in self.encoders}, self.features)

    def compare(self, features: Mapping[str, Array]) -> InDistribution:
        """Compare a network's features (F,) and structure (3,) with the training networks."""
        x, known = self.feature_row(features), self.knows(features[STRUCTURE])
        return InDistribution(
            known and bool(self.support.contains(x)[0]),
            float(self.support.typicality(x)[0]) if known else 0.0,
        )

    def knows(self, structure: Array) -> bool:
        """Return whether a training network has the same tensor counts and about the same size."""
        return bool(is_alike(self.structure, structure).any())

    def distance(self, features: Mapping[str, Array]) -> float:
        """Return how far a network is from the training networks, 1 being as far as 99 % of them."""
        return self.support.relative_distance(self.feature_row(features)[0])
