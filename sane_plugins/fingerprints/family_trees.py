"""Families of networks that were tuned from each other, and which came first (after MoTHer, Horwitz 2024).

The method: docs/explanation/sane.md, section 20.7.

Legend: K members of a family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint
from sane_plugins.fingerprints.pairs_of_many import ManyNetworks, RelatedPair, components
from sane_plugins.fingerprints.relationship import Relationship, relate
from sane_plugins.progress import Report, silent

Array = npt.NDArray[np.float64]
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Member:
    """A network of a family: its name, and that of the one it was probably tuned from (empty for the root).

    `relationship` is that to its parent.
    """

    name: str
    parent: str = ""
    relationship: Relationship | None = None


@dataclass(frozen=True, kw_only=True)
class FamilyTree:
    """Networks that are relatives of each other, the root first, parents before children."""

    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.members)


def tails(network: NetworkFingerprint) -> float:
    """Return how heavy the tails of a network's matrices are; it grows as networks are trained and tuned.

    It is the mean of the logarithm of their kurtosis, weighted by the root of their size.
    """
    matrices = [x for x in network.tensors if x.is_matrix and x.moments[2] > 0]
    if not matrices:
        return 0.0
    weights = np.sqrt([x.size for x in matrices])
    return float(np.average([np.log(float(x.moments[2])) for x in matrices], weights=weights))


def families(
    many: ManyNetworks, report: Report = silent, *, pairs: Sequence[RelatedPair] | None = None
) -> list[FamilyTree]:
    """Return the families of at least two networks, the largest first, each as a tree.

    `pairs` are those of `many.related_pairs()`, where they are known.
    """
    pairs = many.related_pairs(report) if pairs is None else pairs
    found = {(pair.a, pair.b): pair.relationship for pair in pairs}
    return [
        family_tree([many.names[i] for i in own], [many[i] for i in own], _within(own, found))
        for own in components(len(many), pairs)
    ]


def _within(
    numbers: Sequence[int], found: Mapping[tuple[int, int], Relationship]
) -> dict[tuple[int, int], Relationship]:
    place = {number: i for i, number in enumerate(numbers)}
    return {(place[a], place[b]): x for (a, b), x in found.items() if a in place and b in place}


def family_tree(
    names: Sequence[str],
    networks: Sequence[NetworkFingerprint],
    known: Mapping[tuple[int, int], Relationship] | None = None,
) -> FamilyTree:
    """Return relatives as a tree: each is a child of the nearest of those that are older.

    The root has light tails, tails grow away from it, and it lies between the others, unless they form a
    chain. A network is the older the nearer it is to the root, and the lighter its tails are.
    """
    known = dict(known or {})
    count = len(names)
    for i in range(count):
        for j in range(i + 1, count):
            if (i, j) not in known:
                known[i, j] = relate(networks[i], networks[j])
    apart = np.zeros((count, count))
    for (i, j), relationship in known.items():
        apart[i, j] = apart[j, i] = relationship.difference
    heavy = np.array([tails(x) for x in networks])
    root, age = _ages(apart, heavy)
    order = sorted(range(count), key=lambda i: (i != root, age[i]))
    members = [Member(name=names[root])]
    for place, i in enumerate(order[1:], 1):
        parent = min(order[:place], key=lambda j: apart[i, j])
        members.append(
            Member(
                name=names[i],
                parent=names[parent],
                relationship=known[min(i, parent), max(i, parent)],
            )
        )
    return FamilyTree(members=tuple(members))


def _ages(apart: Array, heavy: Array) -> tuple[int, Array]:
    """Return the root, and for each member (K,) how late it comes: distance and tails, each by its spread."""
    tails_in_spreads = _in_spreads(heavy)
    edges = minimum_spanning_tree(1 + apart).toarray()  # a distance of 0 would be no edge
    neighbours = (edges > 0) | (edges.T > 0)
    lateness = tails_in_spreads - _in_spreads(_growth_from(neighbours, tails_in_spreads))
    if neighbours.sum(1).max() > 2:  # no chain
        lateness += _in_spreads(apart.mean(1))
    root = int(lateness.argmin())
    return root, _in_spreads(apart[root]) + tails_in_spreads


def _growth_from(neighbours: npt.NDArray[np.bool_], heavy: Array) -> Array:
    """Return how much tails (K,) grow along the edges of a tree away from each member (K,), on average.

    Beyond one spread a growth counts little more.
    """
    grown = np.zeros(len(heavy))
    for root in range(len(heavy)):
        order, towards = breadth_first_order(neighbours, root, directed=False)
        grown[root] = np.tanh(heavy[order[1:]] - heavy[towards[order[1:]]]).mean()
    return grown


def _in_spreads(values: Array) -> Array:
    return np.asarray((values - values.mean()) / max(float(values.std()), _LEAST))
