"""Pair the tensors of two networks by what they hold, then by place and shape.

The method: docs/explanation/sane.md, section 17.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from sane_plugins.display import ShortRepr
from sane_plugins.fingerprints.evidence import plain_shape, similarity
from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint, TensorFingerprint

CHANCE = 0.25
"""What two strange matrices may have in common by chance."""
_NEVER = 1e3
# What decides where content does not: far below one recognised channel in hundred.
_PLACE, _SHAPE, _ROLE, _NEIGHBOR = 0.01, 0.1, 0.5, 0.5
_WIDEST = 4  # times as many channels, at most, has the other


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
    matrices_a, matrices_b = _matrices(a), _matrices(b)
    likeness = np.array(
        [[similarity(a.tensors[i], b.tensors[j]) for j in matrices_b] for i in matrices_a]
    ).reshape(len(matrices_a), len(matrices_b))
    evident = np.where(likeness > CHANCE, likeness, 0)
    found = _assign(_matrix_costs(a, b, matrices_a, matrices_b, evident))
    pairs = {(matrices_a[i], matrices_b[j]): 1 - float(likeness[i, j]) for i, j in found}
    pairs |= _pair_vectors(a, b, dict(pairs))
    total = max(a.size, b.size)
    done = [
        TensorPair(
            a=a.tensors[i].key,
            b=b.tensors[j].key,
            distance=distance,
            weight=max(a.tensors[i].size, b.tensors[j].size) / total,
        )
        for (i, j), distance in sorted(pairs.items())
    ]
    in_a, in_b = {i for i, _ in pairs}, {j for _, j in pairs}
    shared = sum(
        (1 - distance) * max(a.tensors[i].size, b.tensors[j].size)
        for (i, j), distance in pairs.items()
        if a.tensors[i].is_matrix
    )
    sizes = max(sum(x.tensors[i].size for i in _matrices(x)) for x in (a, b))
    return LayerMatching(
        pairs=tuple(done),
        only_a=tuple(x.key for i, x in enumerate(a.tensors) if i not in in_a),
        only_b=tuple(x.key for j, x in enumerate(b.tensors) if j not in in_b),
        similarity=min(shared / sizes, 1.0) if sizes else 0.0,
    )


def _matrices(network: NetworkFingerprint) -> list[int]:
    return [i for i, x in enumerate(network.tensors) if x.is_matrix]


def _matrix_costs(
    a: NetworkFingerprint,
    b: NetworkFingerprint,
    numbers_a: Sequence[int],
    numbers_b: Sequence[int],
    likeness: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    costs = 1 - likeness
    for row, i in enumerate(numbers_a):
        for column, j in enumerate(numbers_b):
            apart = abs(row / len(numbers_a) - column / len(numbers_b))
            costs[row, column] += _PLACE * apart + _shape_cost(a.tensors[i], b.tensors[j])
    return costs


def _shape_cost(a: TensorFingerprint, b: TensorFingerprint) -> float:
    """Return 0 for equal shapes, and `_NEVER` for kernels of other places or far other widths."""
    if plain_shape(a) == plain_shape(b):
        return 0.0
    if plain_shape(a) == (plain_shape(b)[1], plain_shape(b)[0], *plain_shape(b)[2:]):
        return _SHAPE
    ratios = np.abs(np.log(np.divide(a.shape[:2], b.shape[:2])))
    if plain_shape(a)[2:] != plain_shape(b)[2:] or ratios.max() > np.log(_WIDEST):
        return _NEVER
    return _SHAPE * (1 + float(ratios.sum()))


def _pair_vectors(
    a: NetworkFingerprint, b: NetworkFingerprint, matrices: dict[int, int]
) -> dict[tuple[int, int], float]:
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
            is_near = matrices.get(anchors_a[i], -1) == anchors_b[j]
            if one.role != other.role and distance > _ROLE / 10:
                continue
            costs[row, column] = distance + _NEIGHBOR * (not is_near)
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


def _assign(costs: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    rows, columns = linear_sum_assignment(costs)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if costs[i, j] < _NEVER]
