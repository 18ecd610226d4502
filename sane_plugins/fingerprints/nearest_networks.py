"""Which of many networks have most in common with one: all are compared coarsely, the best exactly.

The method: docs/explanation/sane.md, section 20.5.

Legend: N networks of one form, R channels of a matrix, D numbers of a channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sane_plugins.fingerprints.distances import distances
from sane_plugins.fingerprints.evidence import comparable, in_order, plain_shape
from sane_plugins.fingerprints.likeness import EmbeddingSpread, embedding
from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint, TensorFingerprint
from sane_plugins.fingerprints.packed import PackedFingerprints
from sane_plugins.fingerprints.relationship import STRANGERS, Relationship, relate

Array = npt.NDArray[np.float32]
_MATRICES = 6  # of the network, whose channels are looked for
_OWN_CHANNELS, _OTHER_CHANNELS = 16, 32  # of each matrix, those most unlike the others
_SHORTLIST = 5  # at least, of each kind of evidence
_ROWS = 2048  # networks at a time


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A network of many by its name, and what it has in common with the one that was looked for."""

    name: str
    relationship: Relationship


def nearest(
    network: NetworkFingerprint, among: Sequence[PackedFingerprints], count: int = 10
) -> list[Neighbor]:
    """Return the networks that have most in common with one, the nearest first; at most `count`.

    Those that are shortlisted by either kind of evidence are compared layer by layer.
    """
    scored: list[tuple[Array, Array]] = [_coarse(network, packed) for packed in among]
    places = [(i, row) for i, packed in enumerate(among) for row in range(len(packed))]
    if not places:
        return []
    kept = max(count, _SHORTLIST)
    shortlist: set[int] = set()
    for scores in map(np.concatenate, zip(*scored, strict=True)):
        shortlist |= {int(i) for i in np.argsort(-scores, kind="stable")[:kept]}
    found = [
        Neighbor(name=among[i].names[row], relationship=relate(network, among[i].unpack(row)))
        for i, row in (places[x] for x in sorted(shortlist))
    ]
    return sorted(found, key=lambda x: -x.relationship.similarity)[:count]


@dataclass(frozen=True, kw_only=True)
class Alike:
    """A network of many, and how far its embedding is, in units of the median between two of them."""

    neighbor: Neighbor
    distance: float


def most_alike(
    network: NetworkFingerprint, among: Sequence[PackedFingerprints], count: int = 10
) -> list[Alike]:
    """Return a network's relatives among others, the nearest first, then those most alike by embedding."""
    names = [name for packed in among for name in packed.names]
    table = np.concatenate([packed.embeddings for packed in among])
    spread = EmbeddingSpread.over(table)
    away = np.linalg.norm(spread(table) - spread(embedding(network)), axis=1)
    place = {name: i for i, name in enumerate(names)}
    relatives = [x for x in nearest(network, among, count) if x.relationship.is_related]
    related = {x.name for x in relatives}
    found = [Alike(neighbor=x, distance=float(away[place[x.name]])) for x in relatives]
    for i in np.argsort(away, kind="stable"):
        if len(found) >= count:
            break
        if names[i] not in related:
            stranger = Neighbor(name=names[i], relationship=STRANGERS)
            found.append(Alike(neighbor=stranger, distance=float(away[i])))
    return found


def _coarse(network: NetworkFingerprint, packed: PackedFingerprints) -> tuple[Array, Array]:
    """Return two scores (N,): of the matrices in their own order, and of channels in any order."""
    matrices = [x for x in network.tensors if x.is_matrix]
    ordered = np.zeros((len(matrices), len(packed)), np.float32)
    looked_for = _most_telling(matrices)
    recognized = np.zeros((len(looked_for), len(packed)), np.float32)
    for j, form in enumerate(packed.form.tensors):
        if len(form.shape) < 2:
            continue
        same = [i for i, x in enumerate(matrices) if comparable(x, form)]
        if same:
            sketches, shape = packed.part(j, 2), plain_shape(form)
            for i in same:
                ordered[i] = np.maximum(ordered[i], in_order(matrices[i], shape, sketches))
        alike = [i for i, x in enumerate(looked_for) if comparable(x, form)]
        if alike:
            shares = _shares([looked_for[i] for i in alike], packed, j)
            recognized[alike] = np.maximum(recognized[alike], shares)
    sizes = np.array([x.size for x in matrices], np.float32)
    return sizes @ ordered / max(sizes.sum(), 1), recognized.sum(0)


def _most_telling(matrices: Sequence[TensorFingerprint]) -> list[TensorFingerprint]:
    """Return the matrices with most channels on both sides, and of these the largest."""
    return sorted(matrices, key=lambda x: (-len(x.outputs) - len(x.inputs), -x.size))[:_MATRICES]


def _shares(
    matrices: Sequence[TensorFingerprint], packed: PackedFingerprints, tensor: int
) -> Array:
    """Return how surely the channels of each matrix are recognised in a tensor of the others, (A, N)."""
    is_turned = plain_shape(matrices[0]) != plain_shape(packed.form.tensors[tensor])
    shares = np.zeros((len(matrices), len(packed)), np.float32)
    for side, own in enumerate(("outputs", "inputs")):
        mine = [getattr(x, own)[:_OWN_CHANNELS] for x in matrices]
        apart = np.concatenate(
            [getattr(x, f"{own}_apart")[:_OWN_CHANNELS] for x in matrices], dtype=np.float32
        )
        if len(mine[0]) < 2:
            continue
        theirs = packed.part(tensor, 1 - side if is_turned else side, _OTHER_CHANNELS)
        stacked = np.concatenate(mine)
        for rows in _blocks(len(packed)):
            block = theirs[rows]
            between = distances(stacked, block.reshape(-1, block.shape[2]))
            least = between.reshape(len(stacked), len(block), -1).min(2)
            sure = np.clip(1 - least / np.maximum(apart, 1e-3)[:, None], 0, 1)
            shares[:, rows] += sure.reshape(len(matrices), -1, len(block)).mean(1) / 2
    return shares


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))
