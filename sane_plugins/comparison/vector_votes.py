"""Which layers of vectors, such as norms, belong together: what their tensors, names and places speak for.

The method: docs/explanation/sane.md, section 21.1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from sane_plugins.fingerprints import TensorFingerprint
from sane_plugins.weights import Layer

_NAMED = 0.4  # votes of an equal name, for each tensor
_NEAR = 0.05  # votes of the fingerprints' own matching, which looks at the matrices beside them
_SAME, _EVIDENT = 0.9999, 1.0  # likeness of vectors that are the same, and the votes that this adds
_FAR = 4.0  # times the mean distance of quantiles, as a part of the spread, is the distance of two vectors

Votes = dict[tuple[str, str], float]
"""By the names of a layer of each network."""


def vector_votes(
    vectors: tuple[Collection[TensorFingerprint], Collection[TensorFingerprint]],
    owners: tuple[Mapping[str, Layer], Mapping[str, Layer]],
    near: Iterable[tuple[str, str]],
) -> Votes:
    """Return the votes for each pair of layers, of all pairs of vectors of one role and size."""
    votes: Votes = {}
    for one, other, likeness in _alike(*vectors):
        pair = owners[0][one].name, owners[1][other].name
        own = likeness + _EVIDENT * (likeness > _SAME) + _NAMED * (pair[0] == pair[1])
        votes[pair] = votes.get(pair, 0.0) + own
    for one, other in near:
        pair = owners[0][one].name, owners[1][other].name
        if pair in votes:
            votes[pair] += _NEAR
    return votes


def _alike(
    a: Collection[TensorFingerprint], b: Collection[TensorFingerprint]
) -> Iterable[tuple[str, str, float]]:
    """Yield each pair of vectors of one role and size, and how alike their sorted values are, from 0 to 1."""
    for kind in {(x.role, x.size) for x in a} & {(x.role, x.size) for x in b}:
        ours, theirs = ([x for x in own if (x.role, x.size) == kind] for own in (a, b))
        one, other = (np.stack([x.quantiles for x in own]) for own in (ours, theirs))
        spreads = np.maximum(np.ptp(one, axis=1)[:, None], np.ptp(other, axis=1))
        apart = np.abs(one[:, None] - other).mean(2)
        distance = np.where(spreads > 0, _FAR * apart / np.maximum(spreads, 1e-30), apart > 0)
        for i, row in enumerate(1 - distance.clip(0, 1)):
            for j, likeness in enumerate(row):
                yield ours[i].key, theirs[j].key, float(likeness)
