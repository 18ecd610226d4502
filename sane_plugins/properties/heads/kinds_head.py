"""A head for several kinds of networks: an expert for each, calibrated on that kind alone.

Each kind has its own intervals, so that they hold for it and not only on average (Mondrian conformal
prediction, Vovk, Gammerman and Shafer 2005, section 4.5). A kind of several zoos has an expert for each of
them too, for who knows which of them a network is like: weights alone hardly tell that.
The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sane_plugins.properties import regressors
from sane_plugins.properties.dataset import INVARIANCE, STRUCTURE, stack_features
from sane_plugins.properties.estimates import Estimate
from sane_plugins.properties.heads.numeric_head import PropertyHead
from sane_plugins.properties.regressors import Array, Member

RANKER_FEATURES = "statistics"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KindsHead:
    """Experts for one numeric property, and a ranker for networks of other kinds.

    A network goes to the expert of its kind: among those that were fitted on its structure, to the one that
    was fitted on the most zoos, and among several to the one of which it is most typical. The members of the
    ranker read `RANKER_FEATURES` and give a score that orders networks of a kind, and means nothing between
    kinds; without any, the experts' values are the scores.
    """

    score: ClassVar[str] = PropertyHead.score
    property: str
    experts: tuple[PropertyHead, ...]
    ranker: tuple[Member, ...] = ()

    def __repr__(self) -> str:
        known = f"experts={len(self.experts)}, zoos={list(self.zoos)}"
        return f"{type(self).__name__}({self.property!r}, {known})"

    @builtins.property  # the field `property` shadows the builtin
    def encoders(self) -> tuple[str, ...]:
        """Return the names of the encoders whose features the experts and the ranker use."""
        names = {name for expert in self.experts for name in expert.encoders}
        names |= {RANKER_FEATURES} if self.ranker else set()
        return tuple(sorted(names))

    @builtins.property
    def features(self) -> str:
        """Return the name of all the features that the experts read."""
        names = {expert.features for expert in self.experts}
        return names.pop() if len(names) == 1 else "both"

    @builtins.property
    def invariance(self) -> dict[str, str]:
        """Return how the features of each encoder are invariant to channel order."""
        return {name: INVARIANCE.get(name, "not known") for name in self.encoders}

    @builtins.property
    def scores(self) -> Mapping[str, float]:
        """Return the mean over the experts of each score that all of them have."""
        common = [k for k in self.experts[0].scores if all(k in x.scores for x in self.experts)]
        return {k: float(np.mean([x.scores[k] for x in self.experts])) for k in common}

    @builtins.property
    def coverage(self) -> float:
        """Return the coverage of the intervals."""
        return self.experts[0].coverage

    @builtins.property
    def unit(self) -> str:
        """Return the unit of the property."""
        return self.experts[0].unit

    @builtins.property
    def sane(self) -> str:
        """Return the fingerprint of the SANE whose features are used, empty if none is."""
        return next((expert.sane for expert in self.experts if expert.sane), "")

    @builtins.property
    def zoos(self) -> tuple[str, ...]:
        """Return the names of the zoos that `like` takes."""
        return tuple(sorted({name for expert in self.experts for name in expert.zoos}))

    def like(self, zoo: str) -> KindsHead:
        """Return the head for networks like those of a zoo alone; it knows no other structures."""
        own = [x for x in self.experts if zoo in x.zoos]

        def is_alone(expert: PropertyHead) -> bool:
            others = [x for x in own if len(x.zoos) < len(expert.zoos)]
            return not any(x.knows(row) for x in others for row in expert.structure)

        return replace(self, experts=tuple(x for x in own if is_alone(x)))

    def expert(self, features: Mapping[str, Array]) -> PropertyHead:
        """Return the expert for a network, from its features (F,) by encoder, and its structure."""
        known = [x for x in self.experts if x.knows(features[STRUCTURE])]
        known = [x for x in known if not any({*x.zoos} < {*y.zoos} for y in known)]
        if len(known) == 1:
            return known[0]
        compared = [x.distance(features) for x in known or self.experts]
        return (known or self.experts)[int(np.argmin(compared))]

    def estimate(self, features: Mapping[str, Array]) -> Estimate:
        """Estimate the property of one network from its features (F,) by encoder, and its structure."""
        estimate = self.expert(features).estimate(features)
        if not self.ranker:
            return estimate
        row = stack_features({RANKER_FEATURES: features[RANKER_FEATURES][None]}, RANKER_FEATURES)
        return replace(estimate, score=float(regressors.predict(self.ranker, row)[0]))

    def predict(self, features: Mapping[str, Array]) -> Array:
        """Predict (N,) from features (N, F) by encoder, structure among them."""
        return self._by_expert(features, PropertyHead.predict)

    def intervals(self, features: Mapping[str, Array]) -> Array:
        """Return the interval bounds (N, 2) for features (N, F) by encoder, structure among them."""
        return self._by_expert(features, PropertyHead.intervals)

    def _by_expert(
        self,
        features: Mapping[str, Array],
        ask: Callable[[PropertyHead, Mapping[str, Array]], Array],
    ) -> Array:
        rows = defaultdict(list)
        for i in range(len(features[STRUCTURE])):
            rows[self.experts.index(self.expert({k: x[i] for k, x in features.items()}))].append(i)
        parts = {
            number: ask(self.experts[number], {k: x[of] for k, x in features.items()})
            for number, of in rows.items()
        }
        first = next(iter(parts.values()))
        told = np.zeros((len(features[STRUCTURE]), *first.shape[1:]))
        for number, of in rows.items():
            told[of] = parts[number]
        return told


def experts_of(head: PropertyHead | KindsHead) -> tuple[PropertyHead, ...]:
    """Return the experts of a numeric head; one that was fitted on all kinds together is its own."""
    return head.experts if isinstance(head, KindsHead) else (head,)
