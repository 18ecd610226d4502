"""An embedding of networks by what their fingerprints sum up to, spread over the networks of a zoo.

For networks that are no relatives: which are alike? It depends on no order of channels, names or places of
layers, and networks of all architectures have one of the same length. As they are, all embeddings share one
direction: what all networks have. Over a zoo they are centred. They are not whitened: their numbers are in
units of what chance gives, and of networks that are neighbours when whitened fewer were alike in accuracy.
The method: docs/explanation/sane.md, section 20.6.

Legend: N networks, F numbers of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist

from sane_plugins.fingerprints.network_fingerprint import NetworkFingerprint, TensorFingerprint

Array = npt.NDArray[np.float64]
_COMMON = 9  # numbers of a channel that all kinds of matrices have
_OF_MATRIX = 4 * _COMMON + 3
LENGTH = 2 + 2 * (_OF_MATRIX + 1) + 2
_MOST_MEASURED = 2000  # networks of which all distances are taken


def embedding(network: NetworkFingerprint) -> Array:
    """Return the embedding (F,) of a network: weighted means over its matrices, kernels and others apart."""
    parts = [np.log([network.size, 1 + sum(x.is_matrix for x in network.tensors)])]
    for is_kernel in (True, False):
        chosen = [
            x for x in network.tensors if x.is_matrix and (prod(x.shape[2:]) > 1) == is_kernel
        ]
        rows = [_of_matrix(x) for x in chosen]
        weights = np.sqrt([x.size for x in chosen])
        mean = np.average(rows, axis=0, weights=weights) if rows else np.zeros(_OF_MATRIX)
        parts += [mean, np.array([float(weights.sum() > 0)])]
    vectors = [x.moments for x in network.tensors if not x.is_matrix and x.moments[1] > 0]
    scales = np.log([x[1] for x in vectors]) / 2
    parts.append(np.array([scales.mean(), scales.std()]) if len(scales) else np.zeros(2))
    return np.concatenate(parts)


def _of_matrix(tensor: TensorFingerprint) -> Array:
    """Return means and deviations of the channels' numbers on both sides, the scale, and the tails."""
    sides = []
    for channels in (tensor.outputs[:, :_COMMON], tensor.inputs[:, :_COMMON]):
        sides += [channels.mean(0), channels.std(0)]
    mean, square, kurtosis = (float(x) for x in tensor.moments)
    inputs = prod(tensor.shape[1:])
    scale = 0.5 * np.log(max(square * inputs, 1e-12))
    tails = [scale, mean / max(square, 1e-12) ** 0.5, np.log(max(kurtosis, 1.0))]
    return np.concatenate([*sides, tails])


@dataclass(frozen=True, eq=False)
class EmbeddingSpread:
    """What brings embeddings to mean 0 and a median distance of 1 over the networks of a zoo."""

    mean: Array
    distance: float

    @classmethod
    def over(cls, table: npt.NDArray[np.floating]) -> EmbeddingSpread:
        """Measure the embeddings (N, F) of a zoo."""
        distances = np.sort(pdist(table[:: max(len(table) // _MOST_MEASURED, 1)]))
        median = float(distances[len(distances) // 2]) if len(distances) else 0.0
        return cls(table.mean(0), median or 1.0)

    def __call__(self, table: npt.NDArray[np.floating]) -> Array:
        """Return embeddings (..., F), centred and scaled."""
        return np.asarray((table - self.mean) / self.distance)
