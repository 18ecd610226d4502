"""Numbers of each channel that no order of the channels on the other side changes.

Every number has mean 0 and deviation 1 for values drawn independently from one normal distribution, as
strangers of one shape are; `asinh` makes relative errors of large ones absolute.
The method: docs/explanation/sane.md, section 20.1.

Legend: n output channels, m input channels, p places of a kernel, D numbers of a channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from sane_plugins.fingerprints.balanced import Balanced

Array = npt.NDArray[np.float32]
_WAVES = 8  # of a kernel's places
_COLORS = 3  # polynomials whose means describe a channel
_WAVED = (0, 3)  # those whose waves do


def channel_descriptors(balanced: Balanced) -> tuple[Array, Array]:
    """Return descriptors (n, D) of the output channels and (m, D) of the input channels."""
    n, m, p = balanced.shape
    places = tuple(balanced.tensor.shape[2:])
    rows, columns = np.zeros((n, _COLORS), np.float32), np.zeros((m, _COLORS))
    row_waves, column_waves = np.zeros((n, 2, p), np.float32), np.zeros((m, 2, p))
    over_places = np.ones(m * p, np.float32)
    for part, z in balanced.blocks():
        over_rows = np.ones(len(z), np.float32)
        for i, values in enumerate(_polynomials(z)):
            flat = values.reshape(len(z), -1)
            sums = (over_rows @ flat).reshape(m, p)
            if i < _COLORS:
                rows[part, i] = flat @ over_places / (m * p) ** 0.5
                columns[:, i] += sums.sum(1) / (n * p) ** 0.5
            if p > 1 and i in _WAVED:
                row_waves[part, _WAVED.index(i)] = values.sum(1) / m**0.5
                column_waves[:, _WAVED.index(i)] += sums / n**0.5
    first_rows, first_columns = np.arcsinh(rows), np.arcsinh(columns).astype(np.float32)
    heard_rows = np.zeros((n, 2 * _COLORS), np.float32)
    heard_columns = np.zeros((m, 2 * _COLORS))
    for part, z in balanced.blocks():
        square = (np.square(z) - 1) / np.float32(2**0.5)
        for i, values in enumerate((z, square)):
            own = slice(i * _COLORS, (i + 1) * _COLORS)
            pooled = values.sum(2) / p**0.5 if p > 1 else values[..., 0]
            heard_rows[part, own] = pooled @ first_columns / m**0.5
            heard_columns[:, own] += pooled.T @ first_rows[part] / n**0.5
    return (
        _joined(first_rows, row_waves, heard_rows, places),
        _joined(first_columns, column_waves, heard_columns, places),
    )


def _polynomials(z: Array) -> Iterator[Array]:
    """Yield the Hermite polynomials of degree 1, 3, 4 and 2, of variance 1 for normal values."""
    yield z
    square = np.square(z)
    yield (square - 3) * (z * np.float32(6**-0.5))
    yield ((square - 6) * square + 3) * np.float32(24**-0.5)
    yield (square - 1) * np.float32(2**-0.5)


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
        parts += [np.arcsinh(transformed[:, i, order]) for i in range(2)]
    return np.concatenate(parts, 1).astype(np.float32)


def descriptor_length(places: tuple[int, ...]) -> int:
    """Return the numbers of a channel, by the places of a kernel."""
    return 3 * _COLORS + len(_WAVED) * min(prod(places) - 1, _WAVES)
