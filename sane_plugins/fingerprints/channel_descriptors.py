"""Numbers of each channel that no order of the channels on the other side changes.

Every number has mean 0 and deviation 1 for values drawn independently from one normal distribution, as
strangers of one shape are; `asinh` makes relative errors of large ones absolute.
The method: docs/explanation/sane.md, section 17.1.

Legend: n output channels, m input channels, p places of a kernel, D numbers of a channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from sane_plugins.fingerprints.balanced import Balanced

Array = npt.NDArray[np.float32]
_WAVES = 8  # of a kernel's places
_COLORS = 3


def channel_descriptors(balanced: Balanced) -> tuple[Array, Array]:
    """Return descriptors (n, D) of the output channels and (m, D) of the input channels."""
    n, m, p = balanced.shape
    places = tuple(balanced.tensor.shape[2:])
    rows = np.zeros((n, _COLORS), np.float32)
    row_waves = np.zeros((n, 2, p), np.float32)
    columns, column_waves = np.zeros((m, _COLORS)), np.zeros((m, 2, p))
    for part, z in balanced.blocks():
        for i, values in enumerate(_polynomials(z)):
            rows[part, i] = values.mean((1, 2), dtype=np.float64) * (m * p) ** 0.5
            columns[:, i] += values.sum((0, 2), dtype=np.float64) / (n * p) ** 0.5
        for i, values in enumerate((z, z * z)):
            row_waves[part, i] = values.sum(1, dtype=np.float64) / m**0.5
            column_waves[:, i] += values.sum(0, dtype=np.float64) / n**0.5
    first_rows, first_columns = np.arcsinh(rows), np.arcsinh(columns).astype(np.float32)
    heard_rows = np.zeros((n, 2 * _COLORS), np.float32)
    heard_columns = np.zeros((m, 2 * _COLORS))
    for part, z in balanced.blocks():
        for i, values in enumerate((z.sum(2) / p**0.5, (z * z - 1).sum(2) / (2 * p) ** 0.5)):
            own = slice(i * _COLORS, (i + 1) * _COLORS)
            heard_rows[part, own] = values @ first_columns / m**0.5
            heard_columns[:, own] += values.T @ first_rows[part] / n**0.5
    return (
        _joined(first_rows, row_waves, heard_rows, places),
        _joined(first_columns, column_waves, heard_columns, places),
    )


def _polynomials(z: Array) -> tuple[npt.NDArray[np.floating], ...]:
    """Return the Hermite polynomials of degree 1, 3 and 4 of each value, of variance 1 for normal ones."""
    square = z * z
    return z, (square - 3) * z / 6**0.5, ((square - 6) * square + 3) / 24**0.5


def _joined(
    first: Array,
    waves: npt.NDArray[np.floating],
    heard: npt.NDArray[np.floating],
    places: tuple[int, ...],
) -> Array:
    parts = [first, np.arcsinh(heard)]
    if waves.shape[2] > 1:
        waves = waves.reshape(*waves.shape[:2], *places)
        axes = tuple(range(2, waves.ndim))
        transformed = dctn(waves, axes=axes, norm="ortho").reshape(*waves.shape[:2], -1)
        order = np.argsort(np.indices(places).sum(0).ravel(), kind="stable")[1 : 1 + _WAVES]
        parts += [np.arcsinh(transformed[:, i, order] / 2 ** (i / 2)) for i in range(2)]
    return np.concatenate(parts, 1).astype(np.float32)
