"""A short sketch of a tensor in its own order, whose products estimate those of the tensors.

Rows and columns are multiplied by fixed random signs (Johnson and Lindenstrauss 1984), so that the cosine of
two sketches estimates that of two tensors of one shape, with an error of about 1/16 for unrelated ones. Both
sides have the same signs: the sketch of a transposed matrix is the transposed sketch.
The method: docs/explanation/sane.md, section 20.2.

Legend: n output channels, m input channels, p places of a kernel, K numbers of a side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sane_plugins.fingerprints.balanced import Balanced

Array = npt.NDArray[np.float32]
SIDE = 16
_FEWEST = 4  # rows or columns that have a mean which is not most of what they are
_SIGNS = 2**12  # of one draw


def projection(balanced: Balanced) -> Array:
    """Return the sketch (K * K,) of a balanced matrix without the means of its rows and columns.

    Those are what strangers share: inputs that are alike in all images give columns that are alike.
    """
    n, m, p = balanced.shape
    left, right = _signs(n), _signs(m * p)
    total, sums, of_rows = np.zeros((SIDE, SIDE)), np.zeros(m * p), np.zeros(n)
    for part, z in balanced.blocks():
        flat = z.reshape(len(z), -1)
        total += left[part].T @ (flat @ right)
        sums += flat.sum(0, dtype=np.float64)
        of_rows[part] = flat.mean(1)
    of_columns = sums / n if n >= _FEWEST else np.full(m * p, sums.mean() / n)
    of_rows = of_rows - of_columns.mean() if m * p >= _FEWEST else np.zeros(n)
    total -= np.outer(left.sum(0), of_columns @ right)
    total -= np.outer(of_rows @ left, right.sum(0))
    return np.asarray(total / (n * m * p) ** 0.5 / SIDE, np.float32).ravel()


def _signs(count: int) -> Array:
    """Return signs (count, K); those of a longer axis begin with those of a shorter one."""
    draws = [_draw(start) for start in range(0, max(count, 1), _SIGNS)]
    return np.concatenate(draws)[:count] if len(draws) > 1 else draws[0][:count]


def transposed(sketch: Array) -> Array:
    """Return the sketch (K * K,) of the transposed matrix, of one that is no kernel."""
    return np.asarray(sketch.reshape(SIDE, SIDE).T.ravel())


@lru_cache(maxsize=32)
def _draw(start: int) -> Array:
    signs = np.random.default_rng(start).integers(0, 2, (_SIGNS, SIDE), dtype=np.int8)
    return np.asarray(2 * signs - 1, np.float32)
