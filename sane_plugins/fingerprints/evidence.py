"""How much two matrices have in common that strangers of their shape have not.

The method: docs/explanation/sane.md, section 17.2.

Legend: R channels of a tensor, D numbers of a channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from sane_plugins.fingerprints.network_fingerprint import TensorFingerprint

Array = npt.NDArray[np.float32]
RECOGNIZED = 0.6
"""A channel is recognised if its match is nearer than this part of the way to any other of its own tensor."""
_SAME = 1e-4  # distance of channels that nothing tells apart


def similarity(a: TensorFingerprint, b: TensorFingerprint) -> float:
    """Return a number from 0 for strangers to 1: the larger of both kinds of evidence."""
    return max(cosine(a, b), recognized(a, b), 0.0)


def cosine(a: TensorFingerprint, b: TensorFingerprint) -> float:
    """Return the estimated cosine of two balanced matrices of one shape, in the order that they have."""
    if plain_shape(a) != plain_shape(b):
        return 0.0
    norms = np.sqrt(float(a.sketch @ a.sketch) * float(b.sketch @ b.sketch))
    return float(np.clip(a.sketch @ b.sketch / norms, -1, 1)) if norms else 0.0


def recognized(a: TensorFingerprint, b: TensorFingerprint) -> float:
    """Return the share of channels that are recognised, in any order, in the transposed matrix too."""
    if plain_shape(a)[2:] != plain_shape(b)[2:]:
        return 0.0
    straight = _share((a.outputs, b.outputs), (a.inputs, b.inputs))
    is_turned = a.shape[:2] == b.shape[1::-1]
    return max(straight, _share((a.outputs, b.inputs), (a.inputs, b.outputs)) if is_turned else 0.0)


def _share(*sides: tuple[Array, Array]) -> float:
    ratios = np.concatenate([recognition_ratios(a, b) for a, b in sides])
    return float((ratios < RECOGNIZED).mean()) if len(ratios) else 0.0


def recognition_ratios(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """Return for each channel of `a` (R, D) its distance to its match in `b` (R', D), as a part of the
    distance from either to the nearest other channel of its own tensor (Lowe 2004).

    Strangers are as far from each other as the channels of one network are: 1 and more. Channels that have no
    mutual nearest neighbour, or that others of their own tensor equal, get infinity.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        return np.full(len(a), np.inf)
    between = cdist(a, b)
    match = between.argmin(1)
    is_mutual = between.argmin(0)[match] == np.arange(len(a))
    apart = np.minimum(_nearest_other(a), _nearest_other(b)[match])
    ratios = between.min(1) / np.maximum(apart, _SAME)
    return np.where(is_mutual & (apart > _SAME), ratios, np.inf)


def _nearest_other(a: Array) -> npt.NDArray[np.float64]:
    distances = cdist(a, a)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances.min(1))


def plain_shape(tensor: TensorFingerprint) -> tuple[int, ...]:
    """Return a shape without axes of size 1 at its end: a 1x1 convolution is a linear layer."""
    shape = tensor.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
