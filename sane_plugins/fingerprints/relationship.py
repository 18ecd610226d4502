"""Are two networks relatives? Evidence over all layers, against what strangers have by chance.

The method: docs/explanation/sane.md, section 20.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sane_plugins.fingerprints.evidence import evidence
from sane_plugins.fingerprints.layer_matching import assign_matrices
from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint

# Settled on half of the networks of benchmarks/relatives.py.
IN_ORDER = 0.35
SAME_IN_ORDER, SAME_RECOGNIZED = 0.99999, 0.985
CHANCE, CHANCE_SPREAD = 0.04, 0.4


@dataclass(frozen=True, kw_only=True)
class Relationship:
    """How much two networks have in common.

    `in_order` is the estimated cosine of their balanced matrices in the order that they have, `recognized`
    the share of channels recognised in any order, with how surely they are; both from 0 for strangers to 1.
    `channels` is how many channels were compared.
    """

    in_order: float
    recognized: float
    channels: int

    @property
    def similarity(self) -> float:
        """Return the larger of both kinds of evidence."""
        return max(self.in_order, self.recognized)

    @property
    def difference(self) -> float:
        """Return how far the balanced matrices are apart, as a part of their size; of strangers about 1.4."""
        return float((2 * (1 - self.similarity)) ** 0.5)

    @property
    def is_same(self) -> bool:
        """Return whether the weights are the same but for order, names, precision and scales of channels."""
        return self.in_order > SAME_IN_ORDER or self.recognized > SAME_RECOGNIZED

    @property
    def is_related(self) -> bool:
        """Return whether strangers have as much in common in fewer than 1 of 100 cases."""
        chance = CHANCE + CHANCE_SPREAD / max(self.channels, 1) ** 0.5
        return self.in_order > IN_ORDER or self.recognized > chance


STRANGERS = Relationship(in_order=0.0, recognized=0.0, channels=0)


def relate(a: NetworkFingerprint, b: NetworkFingerprint) -> Relationship:
    """Return what two networks have in common, over all layers that were matched."""
    ours, theirs = ([x for x in network.tensors if x.is_matrix] for network in (a, b))
    if not ours or not theirs:
        return STRANGERS
    found = evidence(ours, theirs)
    pairs = assign_matrices(ours, theirs, found)
    sizes = [max(ours[i].size, theirs[j].size) for i, j in pairs]
    most = max(sum(x.size for x in one) for one in (ours, theirs))
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    channels = float(found.channels[rows, columns].sum())
    recognized = float(found.recognized[rows, columns].sum()) / max(channels, 1)
    in_order = float(np.dot(found.cosine[rows, columns], sizes)) / max(most, sum(sizes))
    return Relationship(
        in_order=float(np.clip(in_order, 0, 1)),
        recognized=float(np.clip(recognized, 0, 1)),
        channels=int(channels),
    )
