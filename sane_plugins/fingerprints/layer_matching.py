"""Pair the tensors of two networks by what they hold, then by place and shape.

The method: docs/explanation/sane.md, section 20.3.

Legend: A, B matrices of two networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from sane_plugins.display import ShortRepr
from sane_plugins.fingerprints.evidence import Evidence, evidence, plain_shape
from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint, TensorFingerprint

CHANCE = 0.25
"""What two strange matrices may have in common by chance."""
_NEVER = 1e3
# What decides where content does not.
_PLACE, _SHAPE, _ROLE, _NEIGHBOR = 0.01, 0.1, 0.5, 0.5
_CONTENT = 0.2  # most that the values of a vector count
_WIDEST = 4  # times as many channels, at most, has the other
_Numbers = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class TensorPair:
    """A tensor of each network: their keys, the distance from 0 (the same) to 1 (strangers), and a weight.

    `weight` is the share of the larger network's values that the larger tensor holds.
    """

    a: str
    b: str
    distance: float
    weight: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LayerMatching(ShortRepr):
    """The tensors of two networks in pairs, in the order of the first, and the keys of those without one.

    `similarity` is that of the matrices weighted by size: from 0 for strangers to 1.
    """

    pairs: tuple[TensorPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    similarity: float


def match_layers(a: NetworkFingerprint, b: NetworkFingerprint) -> LayerMatching:
    """Return which tensors of two networks belong together.

    Matrices are paired by content; where none is recognised, by shape and place. Vectors hold too little to
    be recognised alone: they follow the matrices that stand before them.
    """
    numbers = [[i for i, x in enumerate(network.tensors) if x.is_matrix] for network in (a, b)]
    matrices = [a.tensors[i] for i in numbers[0]], [b.tensors[j] for j in numbers[1]]
    found = evidence(*matrices)
    likeness = np.maximum(np.maximum(found.cosine, found.share), 0)
    assigned = assign_matrices(*matrices, found)
    distances = {
        (numbers[0][i], numbers[1][j]): min(max(1 - float(likeness[i, j]), 0.0), 1.0)
        for i, j in assigned
    }
    distances |= _pair_vectors(a, b, dict(distances))
    pairs = [
        TensorPair(
            a=a.tensors[i].key,
            b=b.tensors[j].key,
            distance=distance,
            weight=max(a.tensors[i].size, b.tensors[j].size) / max(a.size, b.size),
        )
        for (i, j), distance in sorted(distances.items())
    ]
    in_a, in_b = {i for i, _ in distances}, {j for _, j in distances}
    shared = sum(
        (1 - distances[numbers[0][i], numbers[1][j]])
        * max(matrices[0][i].size, matrices[1][j].size)
        for i, j in assigned
    )
    largest = max(sum(x.size for x in own) for own in matrices)
    return LayerMatching(
        pairs=tuple(pairs),
        only_a=tuple(x.key for i, x in enumerate(a.tensors) if i not in in_a),
        only_b=tuple(x.key for j, x in enumerate(b.tensors) if j not in in_b),
        similarity=min(shared / largest, 1.0) if largest else 0.0,
    )


def assign_matrices(
    a: Sequence[TensorFingerprint], b: Sequence[TensorFingerprint], found: Evidence
) -> _Numbers:
    """Return the numbers of matrices that belong together, by the evidence and then by shape and place."""
    likeness = np.maximum(found.cosine, found.share)
    costs = 1 - np.where(likeness > CHANCE, likeness, 0).astype(np.float64)
    shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    plain_b = [plain_shape(x) for x in b]
    for row, one in enumerate(a):
        shape = plain_shape(one)
        for column, other in enumerate(plain_b):
            if (shape, other) not in shapes:
                shapes[shape, other] = _shape_cost(shape, other)
            costs[row, column] += shapes[shape, other]
    places = np.arange(len(a))[:, None] / max(len(a), 1) - np.arange(len(b)) / max(len(b), 1)
    return _assign(costs + _PLACE * np.abs(places))


def _shape_cost(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Return 0 for equal shapes, and `_NEVER` for kernels of other places or far other widths."""
    if a == b:
        return 0.0
    if a == (b[1], b[0], *b[2:]):
        return _SHAPE
    ratios = np.abs(np.log(np.divide(a[:2], b[:2])))
    if a[2:] != b[2:] or ratios.max() > np.log(_WIDEST):
        return _NEVER
    return _SHAPE * (1 + float(ratios.sum()))


def _pair_vectors(
    a: NetworkFingerprint, b: NetworkFingerprint, matrices: Mapping[tuple[int, int], float]
) -> dict[tuple[int, int], float]:
    partners = dict(matrices)
    numbers_a = [i for i, x in enumerate(a.tensors) if not x.is_matrix]
    numbers_b = [j for j, x in enumerate(b.tensors) if not x.is_matrix]
    anchors_a, anchors_b = _anchors(a), _anchors(b)
    costs = np.full((len(numbers_a), len(numbers_b)), _NEVER)
    distances = np.ones_like(costs)
    for row, i in enumerate(numbers_a):
        for column, j in enumerate(numbers_b):
            one, other = a.tensors[i], b.tensors[j]
            if one.shape != other.shape:
                continue
            distance = distances[row, column] = _vector_distance(one, other)
            is_near = (anchors_a[i], anchors_b[j]) in partners
            if one.role != other.role and distance > _ROLE / 10:
                continue
            costs[row, column] = min(distance, _CONTENT) + _NEIGHBOR * (not is_near)
            costs[row, column] += _ROLE * (one.role != other.role)
            costs[row, column] += _PLACE * abs(i / len(a.tensors) - j / len(b.tensors))
    return {(numbers_a[i], numbers_b[j]): float(distances[i, j]) for i, j in _assign(costs)}


def _anchors(network: NetworkFingerprint) -> list[int]:
    """Return for each tensor the matrix of its own layer, or the last one before it (-1: none)."""
    own = {x.layer: i for i, x in enumerate(network.tensors) if x.is_matrix}
    anchors, last = [], -1
    for i, tensor in enumerate(network.tensors):
        last = i if tensor.is_matrix else last
        anchors.append(own.get(tensor.layer, last))
    return anchors


def _vector_distance(a: TensorFingerprint, b: TensorFingerprint) -> float:
    """Return how far the sorted values are apart, as a part of their spread; at most 1."""
    spread = max(float(np.ptp(x.quantiles)) for x in (a, b))
    apart = float(np.abs(a.quantiles - b.quantiles).mean())
    return min(4 * apart / spread, 1.0) if spread else float(apart > 0)


def _assign(costs: npt.NDArray[np.float64]) -> _Numbers:
    rows, columns = linear_sum_assignment(costs)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if costs[i, j] < _NEVER]
