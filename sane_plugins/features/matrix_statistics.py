"""Statistics of one matrix or vector, invariant to the order of channels.

Matrices are (rows, inputs, places): output channels, input channels, and kernel positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_EPSILON = 1e-12
SIZES = 3
_MAX_ROWS_AT_ONCE, _TILE = 2**11, 2**9
_MIN_COMPARED_ROWS, _COMPARED_PER_COLUMN, _MAX_COMPARED_ROWS = 2**13, 2**8, 2**16


def matrix_features(w: Array, bias: Array | None) -> Array:
    """Return all features of one matrix and its bias."""
    return np.concatenate(
        [magnitudes(w), channel_features(w), spectrum(w), spatial(w), bias_relation(w, bias)]
    )


def _ratio(a: float, b: float) -> float:
    return float(a / b) if abs(b) > _EPSILON else 0.0


def clipped_log(x: float) -> float:
    """Return the logarithm of max(x, 1e-12)."""
    return float(np.log(max(x, _EPSILON)))


def _correlation(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return _ratio(float(a @ b), float(np.sqrt((a @ a) * (b @ b))))


def _relative_spread(x: Array) -> list[float]:
    """Return standard deviation, minimum and maximum of positive numbers, relative to their mean."""
    mean = float(x.mean())
    return [_ratio(x.std(), mean), _ratio(x.min(), mean), _ratio(x.max(), mean)]


def magnitudes(w: Array) -> Array:
    """Return log RMS, raw and scaled by two fans as for initialisation, relative mean, and kurtosis."""
    rows, inputs, places = w.shape
    rms, std = float(np.sqrt((w**2).mean())), float(w.std())
    fans = [1, inputs * places, inputs * places + rows * places]
    tails = _ratio(float(((w - w.mean()) ** 4).mean()), std**4)
    return np.array(
        [*(clipped_log(rms * fan**0.5) for fan in fans), _ratio(float(w.mean()), std), tails]
    )


def channel_features(w: Array) -> Array:
    """Return channel norms, cancellation in sums, and cosine similarities."""
    flat = w.reshape(len(w), -1)
    total = float((flat**2).sum())
    out_norm, in_norm = np.sqrt((flat**2).sum(1)), np.sqrt((w**2).sum((0, 2)))
    dead = float((out_norm < 0.1 * out_norm.max()).mean())
    return np.array(
        [
            *_relative_spread(out_norm),
            *_relative_spread(in_norm),
            dead,
            clipped_log(_ratio((flat.sum(0) ** 2).sum(), total)),
            clipped_log(_ratio((flat.sum(1) ** 2).sum(), total)),
            _ratio(np.abs(flat.mean(1)).mean(), flat.std()),
            _ratio(flat.mean(1).std(), flat.std()),
            *_cosine_statistics(flat / np.maximum(out_norm, _EPSILON)[:, None], out_norm),
        ]
    )


def _cosine_statistics(unit: Array, norm: Array) -> list[float]:
    """Return mean, mean size, maximum, minimum and deviation of the cosines of rows (n, k) of length 1."""
    if len(unit) < 2:
        return [0.0] * 5
    if len(unit) > _MAX_ROWS_AT_ONCE:
        return _streamed_cosine_statistics(_thinned(unit, norm).astype(np.float32))
    cosines = _above_diagonal(unit @ unit.T)
    return [cosines.mean(), np.abs(cosines).mean(), cosines.max(), cosines.min(), cosines.std()]


def _streamed_cosine_statistics(unit: npt.NDArray[np.float32]) -> list[float]:
    """Return the same from a tile of the cosines at a time, in single precision."""
    count, total, size, squares, highest, lowest = 0, 0.0, 0.0, 0.0, -2.0, 2.0
    tiles = [unit[start : start + _TILE] for start in range(0, len(unit), _TILE)]
    for i, rows in enumerate(tiles):
        for j, others in enumerate(tiles[i:]):
            cosines = (rows @ others.T).ravel() if j else _above_diagonal(rows @ rows.T)
            if not len(cosines):
                continue
            count += len(cosines)
            total += float(cosines.sum())
            squares += float(cosines @ cosines)
            highest = max(highest, float(cosines.max()))
            lowest = min(lowest, float(cosines.min()))
            size += float(np.abs(cosines, out=cosines).sum())
    mean = total / count
    return [mean, size / count, highest, lowest, max(squares / count - mean * mean, 0.0) ** 0.5]


def _above_diagonal(square: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return square[np.triu_indices(len(square), 1)]


def _thinned(unit: Array, norm: Array) -> Array:
    """Return so many rows that comparing all pairs is work in proportion to the matrix.

    They are taken evenly along their order by `norm` (n,), so that the order of channels does not matter.
    """
    most = min(max(_MIN_COMPARED_ROWS, _COMPARED_PER_COLUMN * unit.shape[1]), _MAX_COMPARED_ROWS)
    if len(unit) <= most:
        return unit
    order, places = np.argsort(norm, kind="stable"), np.linspace(0, len(unit) - 1, most)
    return np.asarray(unit[order[places.astype(int)]])


def spectrum(w: Array) -> Array:
    """Return the largest singular value and the decay of the spectrum."""
    flat = w.reshape(len(w), -1)
    power = _squared_singular_values(flat)
    share = power / max(float(power.sum()), _EPSILON)
    entropy = -float((share * np.log(np.maximum(share, _EPSILON))).sum())
    edge = flat.std() * (len(flat) ** 0.5 + flat.shape[1] ** 0.5)
    second = share[1] if len(share) > 1 else 0.0
    return np.array(
        [
            clipped_log(power[0] ** 0.5),
            _ratio(power[0] ** 0.5, edge),
            share[0],
            second,
            share[:3].sum(),
            share[-1],
            share[len(share) // 2],
            entropy / max(np.log(len(share)), 1.0),
            clipped_log(share[-1]),
            clipped_log(_ratio(share[0], share[len(share) // 2])),
        ]
    )


def _squared_singular_values(flat: Array) -> Array:
    """Return squared singular values in descending order, from the smaller Gram matrix."""
    gram = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
    return np.asarray(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))


def spatial(w: Array) -> Array:
    """Return kernel smoothness: energy of the mean and, for square kernels, by spatial frequency."""
    energy, places = float((w**2).sum()), w.shape[2]
    dc = _ratio(float((w.mean(2) ** 2).sum()) * places, energy)
    side = round(places**0.5)
    if places == 1 or side * side != places:
        return np.array([dc, *[0.0] * 7])
    k = w.reshape(*w.shape[:2], side, side)
    basis = _dct_matrix(side)
    bands = ((basis @ k @ basis.T) ** 2).sum((0, 1)) / max(energy, _EPSILON)
    order = np.add.outer(np.arange(side), np.arange(side))
    low, high = bands[order == 1].mean(), bands[order >= side].mean()
    lag = [
        _ratio(float((a * b).sum()), energy)
        for a, b in ((k[..., 1:], k[..., :-1]), (k[..., 1:, :], k[..., :-1, :]))
    ]
    return np.array(
        [
            dc,
            *lag,
            low,
            high,
            clipped_log(_ratio(low, high)),
            clipped_log(_ratio(bands[0, 0], high)),
            clipped_log((high * energy / w[..., 0].size) ** 0.5),
        ]
    )


def _dct_matrix(n: int) -> Array:
    """Return the orthonormal discrete cosine transform (n, n)."""
    i = np.arange(n)
    basis = np.cos(np.pi * (i + 0.5) * i[:, None] / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return np.asarray(basis)


def bias_relation(w: Array, bias: Array | None) -> Array:
    """Return scale and correlations of the bias relative to its matrix; zeros without a bias."""
    if bias is None:
        return np.zeros(7)
    flat = w.reshape(len(w), -1)
    norm, rms = np.sqrt((flat**2).sum(1)), float(np.sqrt((bias**2).mean()))
    return np.array(
        [
            clipped_log(_ratio(rms, flat.std())),
            clipped_log(float(np.abs(bias).max()) * flat.shape[1] ** 0.5),
            _correlation(bias, norm),
            _correlation(bias, flat.sum(1)),
            _correlation(np.abs(bias), norm),
            _ratio(bias.mean(), rms),
            clipped_log(_ratio(abs(bias.sum()), np.abs(bias).sum())),
        ]
    )


def vector_features(x: Array) -> Array:
    """Return log RMS, log standard deviation, relative mean, and fraction of negatives of a vector."""
    rms, std = float(np.sqrt((x**2).mean())), float(x.std())
    return np.array(
        [clipped_log(rms), clipped_log(std), _ratio(float(x.mean()), rms), float((x < 0).mean())]
    )
