"""Layer statistics: what the numbers of a network say without a learned encoder (spec section 5).

`plain` is s(W) of Unterthiner et al. 2020, the baseline to beat. `statistics` adds shapes of
distributions, spectra, spatial structure, and how neighbouring layers fit. Matrices and vectors form two
sequences along the depth, each interpolated to `PLACES` places, so that every network has the same number
of features; one with five matrices and five vectors is taken as it is. Channel order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sane_plugins.tasks.probes import probe
from sane_plugins.weights.graph import Param, WeightGraph
from sane_plugins.weights.tokens import slots

Array = npt.NDArray[np.float64]
PLACES = 5
_TINY = 1e-12
_STEPS = 30
_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_TAILS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def statistics(graph: WeightGraph) -> torch.Tensor:
    """Return the layer statistics (F,) float64 of a network; F is the same for every network.

    Neighbours are taken in network order and compared where the later one's inputs are a multiple of the
    earlier one's outputs. Raises `SourceError` where a weight is not finite.
    """
    graph.require_finite()
    chain = _Chain(graph)
    vectors = (_array(graph, p).ravel() for p in graph.params if p.size and len(p.shape) < 2)
    matrices = [
        np.concatenate([_shape(w), _rows(w), _spectrum(w), _space(w), _beside(w, b)])
        for w, b in chain
    ]
    activity, decisions = probe(chain)
    pairs = [_fit(a, bias, b) for (a, bias), (b, _) in pairwise(chain)]
    parts = [
        plain(graph).numpy(),
        resample(matrices, PLACES, _WIDTHS["matrix"]).ravel(),
        resample([_vector(v) for v in vectors], PLACES, _WIDTHS["vector"]).ravel(),
        resample(pairs, PLACES - 1, _WIDTHS["pair"]).ravel(),
        resample(activity, PLACES, _WIDTHS["activity"]).ravel(),
        decisions,
        _overall(graph, matrices),
    ]
    return torch.from_numpy(np.nan_to_num(np.concatenate(parts)))


def plain(graph: WeightGraph) -> torch.Tensor:
    """Return s(W) (2 * PLACES * 7,) float64: mean, variance and quartiles of every tensor."""
    sequences: tuple[list[Array], list[Array]] = ([], [])
    for param in graph.params:
        if param.size:
            sequences[len(param.shape) < 2].append(_quartiles(graph, param))
    return torch.from_numpy(
        np.concatenate([resample(rows, PLACES, 7).ravel() for rows in sequences])
    )


def structure(graph: WeightGraph) -> Array:
    """Return how many matrices and vectors a network has, and log2 of its number of values, (3,)."""
    vectors = sum(len(p.shape) < 2 for p in graph.params)
    return np.array([len(graph.params) - vectors, vectors, np.log2(graph.size)], dtype=np.float64)


def slot_moments(graph: WeightGraph) -> list[Array]:
    """Return s(W) of each slot's weight and bias, (14,) each; zeros where there is no bias."""
    return [
        np.concatenate([
            _quartiles(graph, slot.weight),
            np.zeros(7) if slot.bias is None else _quartiles(graph, slot.bias),
        ])
        for slot in slots(graph)
    ]  # fmt: skip


def _quartiles(graph: WeightGraph, param: Param) -> Array:
    x = _array(graph, param).ravel()
    return np.array([x.mean(), x.var(), *np.quantile(x, _QUARTILES)])


def resample(rows: Sequence[Array], places: int, width: int) -> Array:
    """Interpolate a sequence of rows (width,) to `places` along its relative depth; zeros where empty."""
    if not rows:
        return np.zeros((places, width))
    table = np.stack(rows)
    if len(table) == places:
        return table
    at = np.linspace(0, len(table) - 1, places)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    between: Array = table[low] + (at - low)[:, None] * (table[high] - table[low])
    return between


class _Chain(Sequence[tuple[Array, Array | None]]):
    """Each matrix as (rows, inputs, places) with its bias (rows,), read anew whenever it is asked for.

    The inputs of a linear layer after a flatten are split into the earlier layer's channels and places.
    """

    def __init__(self, graph: WeightGraph) -> None:
        self._graph = graph
        self._slots = [slot for slot in slots(graph) if len(slot.weight.shape) > 1]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        slot = self._slots[index]
        w = np.moveaxis(_array(self._graph, slot.weight), slot.weight.axis, 0)
        w = w.reshape(len(w), w.shape[1], -1)
        before = self._outputs(index - 1) if index else 0
        if w.shape[2] == 1 and before and w.shape[1] > before and w.shape[1] % before == 0:
            w = w.reshape(len(w), before, -1)
        return w, None if slot.bias is None else _array(self._graph, slot.bias)

    def _outputs(self, index: int) -> int:
        weight = self._slots[index].weight
        return weight.shape[weight.axis]


def _array(graph: WeightGraph, param: Param) -> Array:
    return graph.tensors[param.key].detach().cpu().double().numpy()


def _ratio(a: float, b: float) -> float:
    return float(a / b) if abs(b) > _TINY else 0.0


def _log(x: float) -> float:
    return float(np.log(max(x, _TINY)))


def _cor(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return _ratio(float(a @ b), float(np.sqrt((a @ a) * (b @ b))))


def _spread(x: Array) -> list[float]:
    """Return how uneven positive numbers are: deviation, least and largest over their mean."""
    mean = float(x.mean())
    return [_ratio(x.std(), mean), _ratio(x.min(), mean), _ratio(x.max(), mean)]


def _moments(x: Array) -> list[float]:
    """Return log deviation, mean, skewness, kurtosis, largest magnitude and tails, all over deviation."""
    std = float(x.std())
    y = (x - x.mean()) / (std if std > _TINY else 1.0)
    tails = np.quantile(y, _TAILS)
    return [_log(std), _ratio(x.mean(), std), float((y**3).mean()), float((y**4).mean()),
            float(np.abs(y).max()), float(np.abs(y).mean()), *tails.tolist()]  # fmt: skip


def _shape(w: Array) -> Array:
    """Return the distribution of all values and their size relative to usual initial scales."""
    x, (rows, inputs, places) = w.ravel(), w.shape
    rms = float(np.sqrt((x**2).mean()))
    share = [float((np.abs(x) < part * rms).mean()) for part in (0.01, 0.1, 0.5)]
    largest = max(1, x.size // 20)
    fan_in, fan_out = inputs * places, rows * places
    sizes = [_log(rms), _log(rms * fan_in**0.5), _log(rms * (fan_in + fan_out) ** 0.5)]
    top = np.partition(x**2, x.size - largest)[x.size - largest :]
    return np.array([*_moments(x), *share, *sizes, _ratio(top.sum(), (x**2).sum())])


def _rows(w: Array) -> Array:
    """Return how channels differ and agree: norms, sums that cancel, cosines."""
    flat = w.reshape(len(w), -1)
    total = float((flat**2).sum())
    out_norm, in_norm = np.sqrt((flat**2).sum(1)), np.sqrt((w**2).sum((0, 2)))
    unit = flat / np.maximum(out_norm, _TINY)[:, None]
    cosines = (unit @ unit.T)[np.triu_indices(len(flat), 1)] if len(flat) > 1 else np.zeros(1)
    dead = float((out_norm < 0.1 * out_norm.max()).mean())
    return np.array([
        *_spread(out_norm), *_spread(in_norm), dead,
        _log(_ratio((flat.sum(0) ** 2).sum(), total)), _log(_ratio((flat.sum(1) ** 2).sum(), total)),
        _ratio(np.abs(flat.mean(1)).mean(), flat.std()), _ratio(flat.mean(1).std(), flat.std()),
        cosines.mean(), np.abs(cosines).mean(), cosines.max(), cosines.min(), cosines.std(),
    ])  # fmt: skip


def _spectrum(w: Array) -> Array:
    """Return the largest singular value and how the others fall off."""
    flat = w.reshape(len(w), -1)
    power = _eigenvalues(flat)
    share = power / max(float(power.sum()), _TINY)
    entropy = -float((share * np.log(np.maximum(share, _TINY))).sum())
    edge = flat.std() * (len(flat) ** 0.5 + flat.shape[1] ** 0.5)
    second = share[1] if len(share) > 1 else 0.0
    return np.array([
        _log(power[0] ** 0.5), _ratio(power[0] ** 0.5, edge), share[0], second, share[:3].sum(),
        share[-1], share[len(share) // 2], entropy / max(np.log(len(share)), 1.0),
        _log(share[-1]), _log(_ratio(share[0], share[len(share) // 2])),
    ])  # fmt: skip


def _eigenvalues(flat: Array) -> Array:
    """Return squared singular values, largest first, from the smaller Gram matrix."""
    gram = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
    return np.asarray(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))


def _space(w: Array) -> Array:
    """Return how smooth kernels are: energy of their mean, and by spatial frequency where square."""
    energy, places = float((w**2).sum()), w.shape[2]
    dc = _ratio(float((w.mean(2) ** 2).sum()) * places, energy)
    side = round(places**0.5)
    if places == 1 or side * side != places:
        return np.array([dc, *[0.0] * 7])
    k = w.reshape(*w.shape[:2], side, side)
    basis = _cosines(side)
    bands = ((basis @ k @ basis.T) ** 2).sum((0, 1)) / max(energy, _TINY)
    order = np.add.outer(np.arange(side), np.arange(side))
    low, high = bands[order == 1].mean(), bands[order >= side].mean()
    lag = [_ratio(float((a * b).sum()), energy)
           for a, b in ((k[..., 1:], k[..., :-1]), (k[..., 1:, :], k[..., :-1, :]))]  # fmt: skip
    return np.array([
        dc, *lag, low, high, _log(_ratio(low, high)), _log(_ratio(bands[0, 0], high)),
        _log((high * energy / w[..., 0].size) ** 0.5),
    ])  # fmt: skip


def _cosines(n: int) -> Array:
    """Return the orthonormal discrete cosine transform (n, n)."""
    i = np.arange(n)
    basis = np.cos(np.pi * (i + 0.5) * i[:, None] / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return np.asarray(basis)


def _beside(w: Array, bias: Array | None) -> Array:
    """Return how the bias compares with its matrix; zeros without one."""
    if bias is None:
        return np.zeros(7)
    flat = w.reshape(len(w), -1)
    norm, rms = np.sqrt((flat**2).sum(1)), float(np.sqrt((bias**2).mean()))
    return np.array([
        _log(_ratio(rms, flat.std())), _log(float(np.abs(bias).max()) * flat.shape[1] ** 0.5),
        _cor(bias, norm), _cor(bias, flat.sum(1)), _cor(np.abs(bias), norm),
        _ratio(bias.mean(), rms), _log(_ratio(abs(bias.sum()), np.abs(bias).sum())),
    ])  # fmt: skip


def _vector(x: Array) -> Array:
    rms = float(np.sqrt((x**2).mean()))
    share = [float((np.abs(x) < part * rms).mean()) for part in (0.01, 0.1, 0.5)]
    return np.array([*_moments(x), _log(rms), float((x < 0).mean()), *share])


def _fit(a: Array, bias: Array | None, b: Array) -> Array:
    """Return how the later matrix reads what the earlier one writes; zeros where they do not meet."""
    if b.shape[1] != len(a) or len(a) < 2:
        return np.zeros(11)
    first, second = a.reshape(len(a), -1), np.moveaxis(b, 1, 0).reshape(len(a), -1)
    write, read = np.sqrt((first**2).sum(1)), np.sqrt((second**2).sum(1))
    gram_a, gram_b = first @ first.T, second @ second.T
    size_a, size_b = float(np.trace(gram_a)), float(np.trace(gram_b))
    side = np.zeros(len(a)) if bias is None else bias
    return np.array([
        _cor(write, read), _cor(np.log(write + _TINY), np.log(read + _TINY)),
        _log(_ratio(float((gram_a * gram_b).sum()) * len(a), size_a * size_b)),
        abs(float(_top(gram_a) @ _top(gram_b))), _log(_ratio(size_a, size_b)),
        _cor(gram_a.ravel(), gram_b.ravel()), _cor(side, read), _cor(side, second.sum(1)),
        _cor(first.sum(1), second.sum(1)), _log(size_a * size_b),
        _ratio(float(write @ read), float(np.sqrt(size_a * size_b))),
    ])  # fmt: skip


def _top(gram: Array) -> Array:
    """Return the leading eigenvector by a few power steps from the row norms, which follow any order."""
    x = np.sqrt(np.maximum(np.diag(gram), 0.0))
    for _ in range(_STEPS):
        x = gram @ (x / max(float(np.linalg.norm(x)), _TINY))
    return np.asarray(x / max(float(np.linalg.norm(x)), _TINY))


def _overall(graph: WeightGraph, matrices: Sequence[Array]) -> Array:
    """Return size, depth, and the products over all matrices of norms and largest singular values."""
    names = [0, _WIDTHS["shape"] - 3, _WIDTHS["shape"] + _WIDTHS["rows"]]
    sums = [float(sum(m[i] for m in matrices)) for i in names]
    return np.array([_log(graph.size), _log(len(matrices)), *sums])


def _widths() -> dict[str, int]:
    """Measure the feature blocks once on a dummy, so that their sizes are written nowhere twice."""
    w, b = np.ones((2, 2, 1)), np.ones(2)
    sizes = {"shape": len(_shape(w)), "rows": len(_rows(w)), "vector": len(_vector(b))}
    rest = len(_spectrum(w)) + len(_space(w)) + len(_beside(w, b))
    activity = len(probe([(w, b)])[0][0])
    return {
        **sizes, "matrix": sizes["shape"] + sizes["rows"] + rest, "pair": len(_fit(w, b, w)),
        "activity": activity,
    }  # fmt: skip


_WIDTHS = _widths()
