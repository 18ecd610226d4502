"""How much matrices of two networks have in common that strangers of their shape have not.

The method: docs/explanation/sane.md, section 20.2.

Legend: A, B matrices of two networks, R channels kept of each, D numbers of a channel, K numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sane_plugins.fingerprints.distances import distances
from sane_plugins.fingerprints.network_fingerprint import TensorFingerprint
from sane_plugins.fingerprints.projection import transposed

Array = npt.NDArray[np.float32]
_SAME = 1e-3  # distance of channels that nothing tells apart


@dataclass(frozen=True, eq=False)
class Evidence:
    """For each pair of matrices (A, B): the estimated cosine in their own order, and the recognised channels.

    `recognized` sums, over the channels of both sides, how surely each is recognised, from 0 to 1; `channels`
    is how many there are.
    """

    cosine: Array
    recognized: Array
    channels: Array

    @property
    def share(self) -> Array:
        """Return the share of channels that are recognised, in any order (A, B)."""
        return np.asarray(self.recognized / np.maximum(self.channels, 1), np.float32)


def evidence(a: Sequence[TensorFingerprint], b: Sequence[TensorFingerprint]) -> Evidence:
    """Compare all matrices of one network with all of another; pairs of unlike forms have none."""
    cosine, recognized, channels = (np.zeros((len(a), len(b)), np.float32) for _ in range(3))
    for places, numbers_a in _by_places(a).items():
        numbers_b = _by_places(b).get(places, [])
        for i in numbers_a:
            same = [j for j in numbers_b if comparable(a[i], b[j])]
            for form in dict.fromkeys(plain_shape(b[j]) for j in same):
                alike = [j for j in same if plain_shape(b[j]) == form]
                others = [b[j] for j in alike]
                recognized[i, alike], channels[i, alike] = _recognized(a[i], others)
                cosine[i, alike] = in_order(a[i], form, np.stack([x.sketch for x in others]))
    return Evidence(cosine, recognized, channels)


class HasShape(Protocol):
    """What has the shape of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return output channels, input channels and places."""


def comparable(a: HasShape, b: HasShape) -> bool:
    """Return whether channels of two matrices can be alike: of one shape, or of the transposed one."""
    one, other = plain_shape(a), plain_shape(b)
    return one == other or one == (other[1], other[0], *other[2:])


def in_order(a: TensorFingerprint, form: tuple[int, ...], sketches: Array) -> Array:
    """Return the estimated cosines (B,) of a matrix and others of one comparable form, by sketches (B, K).

    A matrix of two axes is compared with the transposed ones too.
    """
    found = np.zeros(len(sketches), np.float32)
    own = plain_shape(a)
    if own == form:
        found = cosines(a.sketch, sketches)
    if len(own) == 2 and own == form[::-1]:
        found = np.maximum(found, cosines(transposed(a.sketch), sketches))
    return found


def cosines(sketch: Array, others: Array) -> Array:
    """Return the cosine of a sketch (K,) and each of others (B, K); 0 where one is 0."""
    norms = np.sqrt((sketch @ sketch) * np.square(others).sum(1))
    return np.asarray(others @ sketch / np.maximum(norms, 1e-12), np.float32)


def _recognized(a: TensorFingerprint, others: Sequence[TensorFingerprint]) -> tuple[Array, Array]:
    """Return the sums over channels of how surely they are recognised, and their numbers (B,)."""
    first, sides = others[0], ("outputs", "inputs")
    best = np.zeros(len(others), np.float32)
    ways = [sides] if plain_shape(a) == plain_shape(first) else []
    ways += [sides[::-1]] if a.shape[:2] == first.shape[1::-1] else []
    for way in ways:
        sums = np.zeros(len(others), np.float32)
        for own, other in zip(sides, way, strict=True):
            sums += sureness(
                getattr(a, own),
                getattr(a, f"{own}_apart"),
                np.stack([getattr(x, other) for x in others]),
                np.stack([getattr(x, f"{other}_apart") for x in others]),
            ).sum(0)
        best = np.maximum(best, sums)
    channels = sum(max(len(getattr(a, x)), len(getattr(first, x))) for x in sides)
    return best, np.full(len(others), channels, np.float32)


def sureness(a: Array, a_apart: Array, b: Array, b_apart: Array) -> Array:
    """Return how surely each channel of `a` (R, D) is recognised in each of `b` (B, R', D), as (R, B).

    `a_apart` (R,) and `b_apart` (B, R') are the distances to the nearest other channel of its matrix. The
    sureness is 1 less the distance to the match, as a part of the smaller of both channels' own distances
    (after Lowe 2004), where the two are each other's nearest. Strangers are as far from each other as the
    channels of one network are: 0. Channels that others of their own matrix equal get 0.
    """
    if min(len(a), b.shape[1]) < 2:
        return np.zeros((len(a), len(b)), np.float32)
    between = distances(a, b.reshape(-1, b.shape[2])).reshape(len(a), len(b), -1)
    match = between.argmin(2)
    back = np.take_along_axis(between.argmin(0), match.T, 1).T
    apart = np.minimum(a_apart[:, None], np.take_along_axis(b_apart, match.T, 1).T)
    is_known = (back == np.arange(len(a))[:, None]) & (apart > _SAME)
    ratio = between.min(2) / np.maximum(apart, _SAME)
    return np.where(is_known, np.clip(1 - ratio, 0, 1), 0).astype(np.float32)


def plain_shape(tensor: HasShape) -> tuple[int, ...]:
    """Return a shape without axes of size 1 at its end: a 1x1 convolution is a linear layer."""
    shape = tensor.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _by_places(tensors: Sequence[TensorFingerprint]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(plain_shape(tensor)[2:], []).append(i)
    return groups
