"""A short sketch of a tensor in its own order, whose products estimate those of the tensors.

Rows and columns are multiplied by fixed random signs (Johnson and Lindenstrauss 1984), so that the cosine of
two sketches estimates that of two tensors of one shape, with an error of about 1/16 for unrelated ones.
The method: docs/explanation/sane.md, section 17.2.

Legend: n output channels, m input channels, p places of a kernel, K numbers of a side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sane_plugins.fingerprints.balanced import Balanced

Array = npt.NDArray[np.float32]
SIDE = 16
_SIGNS = 2**12  # of one draw


def projection(balanced: Balanced) -> Array:
    """Return the sketch (K * K,) of a balanced matrix, without what all its values of one place share."""
    n, m, p = balanced.shape
    left, right = _signs(n, 0), _signs(m * p, 1)
    total, sums = np.zeros((SIDE, SIDE)), np.zeros(p)
    for part, z in balanced.blocks():
        total += left[part].T @ (z.reshape(len(z), -1) @ right)
        sums += z.sum((0, 1), dtype=np.float64)
    shared = np.tile(sums / (n * m), m)
    total -= np.outer(left.sum(0), shared @ right)
    return np.asarray(total / (n * m * p) ** 0.5 / SIDE, np.float32).ravel()


def _signs(count: int, seed: int) -> Array:
    """Return signs (count, K); those of a longer axis begin with those of a shorter one."""
    draws = [_draw(seed, start) for start in range(0, max(count, 1), _SIGNS)]
    return np.concatenate(draws)[:count] if len(draws) > 1 else draws[0][:count]


@lru_cache(maxsize=32)
def _draw(seed: int, start: int) -> Array:
    signs = np.random.default_rng((seed, start)).integers(0, 2, (_SIGNS, SIDE), dtype=np.int8)
    return np.asarray(2 * signs - 1, np.float32)
