"""Layer statistics: network features that need no learned encoder.

The method: docs/explanation/sane.md, section 5.4.

`unterthiner_statistics` is s(W) of Unterthiner et al. 2020, the baseline to beat. `statistics` has fewer
features of value distributions, which add little beyond mean and deviation, and more of channels, spectra,
spatial structure and responses to random inputs. Matrices, vectors, and each role in normalisations form
sequences along the depth, resampled to a fixed length, so that every network has the same number of features;
sequences of exactly that length are not interpolated. All features are invariant to channel order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sane_plugins.errors import SourceError
from sane_plugins.features import matrix_statistics
from sane_plugins.features.random_probes import (
    ACTIVITY,
    MAX_MATRICES,
    is_small,
    probe,
    probe_decisions,
)
from sane_plugins.weights import Param, WeightGraph

Array = npt.NDArray[np.float64]
PLACES = 5
_NORM_ROLES = ("scale", "shift", "running_mean", "running_var")
_NORM_LENGTH = 3
_EPSILON = 1e-5
_MAX_SPECTRUM = 2**14
_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def statistics(graph: WeightGraph) -> torch.Tensor:
    """Return the layer statistics (F,) float64 of a network; F is the same for every network.

    Raises `SourceError` if a weight is not finite, and for a matrix whose spectrum is out of reach.
    """
    graph = graph.require_finite()
    chain = _Chain(graph)
    chain.require_spectra()
    vectors = [
        (p.role, matrix_statistics.vector_features(_array(graph, p).ravel()))
        for p in graph.params
        if p.size and len(p.shape) < 2
    ]
    matrices = [matrix_statistics.matrix_features(w, bias) for w, bias in chain]
    activity, outputs = probe(_FoldedChain(graph))
    parts = [
        resample(matrices, PLACES, _WIDTHS["matrix"]).ravel(),
        by_role(vectors, _WIDTHS["vector"]),
        resample(activity, PLACES, ACTIVITY).ravel(),
        outputs,
        _global_features(graph, matrices),
    ]
    return torch.from_numpy(np.nan_to_num(np.concatenate(parts)))


def decisions(graph: WeightGraph) -> Array:
    """Return decision statistics on random inputs (DECISIONS,); zeros if the network is not a chain."""
    return probe_decisions(_FoldedChain(graph))


def is_chain(graph: WeightGraph) -> bool:
    """Return whether probes reach the outputs: each matrix is small and takes the previous one's outputs."""
    return _Chain(graph).is_probed


def unterthiner_statistics(graph: WeightGraph) -> torch.Tensor:
    """Return s(W) (2 * PLACES * 7,) float64: mean, variance and quartiles of every tensor."""
    sequences: tuple[list[Array], list[Array]] = ([], [])
    for param in graph.params:
        if param.size:
            sequences[len(param.shape) < 2].append(_moments_and_quartiles(graph, param))
    return torch.from_numpy(
        np.concatenate([resample(rows, PLACES, 7).ravel() for rows in sequences])
    )


def structure(graph: WeightGraph) -> Array:
    """Return the numbers of matrices and vectors, and log2 of the number of parameters, (3,)."""
    vectors = sum(len(p.shape) < 2 for p in graph.params)
    return np.array([len(graph.params) - vectors, vectors, np.log2(graph.size)], dtype=np.float64)


def slot_moments(graph: WeightGraph) -> list[Array]:
    """Return s(W) of each slot's weight and bias, (14,) each; zeros for a missing bias."""
    return [
        np.concatenate(
            [
                _moments_and_quartiles(graph, slot.weight),
                np.zeros(7) if slot.bias is None else _moments_and_quartiles(graph, slot.bias),
            ]
        )
        for slot in graph.slots
    ]


def _moments_and_quartiles(graph: WeightGraph, param: Param) -> Array:
    x = _array(graph, param).ravel()
    return np.array([x.mean(), x.var(), *np.quantile(x, _QUARTILES)])


def resample(rows: Sequence[Array], places: int, width: int) -> Array:
    """Resample a sequence of rows (width,) linearly to length `places`; zeros if it is empty."""
    if not rows:
        return np.zeros((places, width))
    table = np.stack(rows)
    if len(table) == places:
        return table
    depth = np.linspace(0, len(table) - 1, places)
    low = np.floor(depth).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    interpolated: Array = table[low] + (depth - low)[:, None] * (table[high] - table[low])
    return interpolated


def by_role(vectors: Sequence[tuple[str, Array]], width: int) -> Array:
    """Resample vector features (width,) by role: biases and others, then each normalisation role."""
    norm_rows = {
        role: [row for row_role, row in vectors if row_role == role] for role in _NORM_ROLES
    }
    other_rows = [row for role, row in vectors if role not in _NORM_ROLES]
    parts = [resample(rows, _NORM_LENGTH, width).ravel() for rows in norm_rows.values()]
    return np.concatenate([resample(other_rows, PLACES, width).ravel(), *parts])


class _Chain(Sequence[tuple[Array, Array | None]]):
    """Lazy sequence of matrices (rows, inputs, places) with their biases (rows,).

    The inputs of a linear layer after a flatten are split into the previous layer's channels and positions.
    """

    def __init__(self, graph: WeightGraph) -> None:
        self._graph = graph
        self._slots = [slot for slot in graph.slots if len(slot.weight.shape) > 1]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        slot = self._slots[index]
        w = np.moveaxis(_array(self._graph, slot.weight), slot.weight.axis, 0)
        bias = None if slot.bias is None else _array(self._graph, slot.bias)
        return w.reshape(self._shape(index)), bias

    @property
    def is_probed(self) -> bool:
        """Return whether there are matrices, each small and taking the previous one's outputs."""
        shapes = [self._shape(index) for index in range(len(self))]
        return (
            0 < len(shapes) <= MAX_MATRICES
            and all(map(is_small, shapes))
            and all(a[0] == b[1] for a, b in pairwise(shapes))
        )

    def require_spectra(self) -> None:
        """Raise `SourceError` for a matrix of more than 2^14 rows and columns: spectra take their cube."""
        for index, slot in enumerate(self._slots):
            rows, inputs, places = self._shape(index)
            if min(rows, inputs * places) > _MAX_SPECTRUM:
                raise SourceError(
                    f"{self._graph.source}, '{slot.weight.key}'",
                    f"its shape is {slot.weight.shape}",
                    f"statistics are taken of matrices with at most {_MAX_SPECTRUM} rows or columns",
                    "choose the encoder sane, which takes any size",
                )

    def _shape(self, index: int) -> tuple[int, int, int]:
        weight = self._slots[index].weight
        rest = [size for axis, size in enumerate(weight.shape) if axis != weight.axis]
        inputs, places = rest[0], math.prod(rest[1:])
        previous_outputs = self._outputs(index - 1) if index else 0
        if (
            places == 1
            and previous_outputs
            and inputs > previous_outputs
            and inputs % previous_outputs == 0
        ):
            inputs, places = previous_outputs, inputs // previous_outputs
        return self._outputs(index), inputs, places

    def _outputs(self, index: int) -> int:
        weight = self._slots[index].weight
        return weight.shape[weight.axis]


class _FoldedChain(_Chain):
    """A chain with each normalisation folded into the preceding matrix, as at inference."""

    def __init__(self, graph: WeightGraph) -> None:
        super().__init__(graph)
        self._norms: list[dict[str, Param]] = []
        for slot in graph.slots:
            if len(slot.weight.shape) > 1:
                self._norms.append({})
            elif self._norms:
                self._norms[-1].setdefault(slot.weight.role, slot.weight)

    def __getitem__(self, index: Any) -> Any:
        w, bias = super().__getitem__(index)
        norm = {role: self._norms[index].get(role) for role in _NORM_ROLES}
        if any(param is None or param.size != len(w) for param in norm.values()):
            return w, bias
        scale, shift, mean, var = (_array(self._graph, p).ravel() for p in norm.values() if p)
        factor = scale / np.sqrt(np.maximum(var, 0.0) + _EPSILON)
        bias_or_zero = 0.0 if bias is None else bias
        return w * factor[:, None, None], shift + (bias_or_zero - mean) * factor


def _array(graph: WeightGraph, param: Param) -> Array:
    return graph.tensors[param.key].detach().cpu().double().numpy()


def _global_features(graph: WeightGraph, matrices: Sequence[Array]) -> Array:
    """Return log size, log depth, and log products over all matrices of scales and spectral norms."""
    names = [*range(matrix_statistics.SIZES), _WIDTHS["sizes"] + _WIDTHS["channels"]]
    sums = [float(sum(m[i] for m in matrices)) for i in names]
    return np.array(
        [
            matrix_statistics.clipped_log(graph.size),
            matrix_statistics.clipped_log(len(matrices)),
            *sums,
        ]
    )


def _count_features() -> dict[str, int]:
    """Return feature counts, measured on dummy arrays so that they need not be duplicated here."""
    w, b = np.ones((2, 2, 1)), np.ones(2)
    return {
        "sizes": len(matrix_statistics.magnitudes(w)),
        "channels": len(matrix_statistics.channel_features(w)),
        "matrix": len(matrix_statistics.matrix_features(w, b)),
        "vector": len(matrix_statistics.vector_features(b)),
    }


_WIDTHS = _count_features()
