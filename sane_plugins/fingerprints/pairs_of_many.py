"""All pairs of relatives among many networks, without comparing all of them layer by layer.

The method: docs/explanation/sane.md, section 20.5.

Legend: N and M networks of two forms, F numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from sane_plugins.fingerprints.evidence import comparable, plain_shape
from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint
from sane_plugins.fingerprints.packed import PackedFingerprints, TensorForm
from sane_plugins.fingerprints.projection import transposed
from sane_plugins.fingerprints.relationship import IN_ORDER, Relationship, relate
from sane_plugins.progress import Progress, Report, silent

Array = npt.NDArray[np.float32]
_NEIGHBORS = 3  # by embedding, whose channels are compared
_TIES = 20  # nearest by sketch that are compared exactly
_SAME = 0.99


@dataclass(frozen=True, kw_only=True)
class RelatedPair:
    """Two networks by their numbers, the smaller first, and what they have in common."""

    a: int
    b: int
    relationship: Relationship


class ManyNetworks:
    """Fingerprints of many networks, numbered through all forms."""

    def __init__(self, packed: Sequence[PackedFingerprints]) -> None:
        self._packed = packed
        self._places = [(i, row) for i, one in enumerate(packed) for row in range(len(one))]
        self.names = tuple(packed[i].names[row] for i, row in self._places)
        self._unpacked: dict[int, NetworkFingerprint] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> NetworkFingerprint:
        """Return one of the networks."""
        if number not in self._unpacked:
            i, row = self._places[number]
            self._unpacked[number] = self._packed[i].unpack(row)
        return self._unpacked[number]

    def related_pairs(
        self, report: Report = silent, *, in_order: float = IN_ORDER
    ) -> list[RelatedPair]:
        """Return the pairs that are relatives, among those that embeddings or sketches bring together.

        `in_order` is the least estimated cosine of the latter.
        """
        candidates = sorted({*self._near_in_order(in_order), *self._near_by_embedding()})
        pairs = []
        for done, (a, b) in enumerate(candidates):
            relationship = relate(self[a], self[b])
            if relationship.is_related:
                pairs.append(RelatedPair(a=a, b=b, relationship=relationship))
            report(Progress(job="compare", done=done + 1, total=len(candidates)))
        return pairs

    def duplicates(
        self, report: Report = silent, *, pairs: Sequence[RelatedPair] | None = None
    ) -> list[list[int]]:
        """Return groups of networks that hold the same weights, the largest first.

        `pairs` are those of `related_pairs`, where they are known.
        """
        pairs = self.related_pairs(report, in_order=_SAME) if pairs is None else pairs
        return components(len(self), [x for x in pairs if x.relationship.is_same])

    def _near_in_order(self, least: float) -> Iterator[tuple[int, int]]:
        """Yield the pairs whose sketches are near each other; of many, the nearest."""
        starts = np.cumsum([0, *map(len, self._packed)])
        for i, one in enumerate(self._packed):
            for j, other in enumerate(self._packed[i:], i):
                scores = _scores(one, other)
                if i == j:
                    np.fill_diagonal(scores, 0)
                for a, row in enumerate(scores):
                    best = np.argsort(-row, kind="stable")[:_TIES]
                    for b in best[row[best] > least]:
                        yield _ordered(int(starts[i] + a), int(starts[j] + b))

    def _near_by_embedding(self) -> Iterator[tuple[int, int]]:
        if len(self) < 2:
            return
        table = np.concatenate([one.embeddings for one in self._packed])
        count = min(_NEIGHBORS, len(self) - 1)  # a network is no neighbour of itself
        found = NearestNeighbors(n_neighbors=count).fit(table).kneighbors(return_distance=False)
        yield from (_ordered(a, int(b)) for a, row in enumerate(found) for b in row)


def components(count: int, pairs: Sequence[RelatedPair]) -> list[list[int]]:
    """Return the groups of two and more networks that pairs connect, the largest first."""
    ones, a, b = np.ones(len(pairs)), [x.a for x in pairs], [x.b for x in pairs]
    _, labels = connected_components(
        coo_array((ones, (a, b)), shape=(count, count)), directed=False
    )
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(int(label), []).append(i)
    return sorted((x for x in groups.values() if len(x) > 1), key=len, reverse=True)


def _ordered(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


def _scores(one: PackedFingerprints, other: PackedFingerprints) -> Array:
    """Return the estimated cosines (N, M) in order, of the best partner of each matrix, weighted by size."""
    total = np.zeros((len(one), len(other)), np.float32)
    sizes = 0.0
    for i, form in enumerate(one.form.tensors):
        if len(form.shape) < 2:
            continue
        size = float(np.prod(form.shape))
        sizes += size
        partners = [
            j for j, x in enumerate(other.form.tensors) if len(x.shape) > 1 and comparable(form, x)
        ]
        if partners:
            own = _unit(one.part(i, 2))
            best = np.full_like(total, -1)
            for j in partners:
                sketches = _unit(other.part(j, 2))
                for turned in _ways(form, other.form.tensors[j], sketches):
                    np.maximum(best, own @ turned.T, out=best)
            total += size * best
    return total / max(sizes, 1)


def _ways(form: TensorForm, other: TensorForm, sketches: Array) -> Iterator[Array]:
    own, theirs = plain_shape(form), plain_shape(other)
    if own == theirs:
        yield sketches
    if len(own) == 2 and own == theirs[::-1]:
        yield np.stack([transposed(x) for x in sketches])


def _unit(sketches: Array) -> Array:
    norms = np.linalg.norm(sketches, axis=1, keepdims=True)
    return np.asarray(sketches / np.maximum(norms, 1e-12), np.float32)
