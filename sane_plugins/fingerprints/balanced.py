"""A matrix with each channel brought to the same size, a block of rows at a time.

Scaling rows and columns in turn until all have mean square 1 (Sinkhorn and Knopp 1967) has one limit,
whatever the scales of channels were before, and the same one for the transposed matrix: a norm that is folded
in, or a factor that two consecutive layers share between them, leaves no trace.
The method: docs/explanation/sane.md, section 20.1.

Legend: n output channels, m input channels, p places of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float32]
_ROUNDS = 12
_TOLERANCE = 1e-4
_BLOCK = 2**20  # values in single precision at a time
_MOST_ENERGIES = 2**24  # kept between rounds
_LEAST = 1e-30  # mean square, of the largest value's square: what is smaller counts as 0


@dataclass(frozen=True, eq=False)
class Balanced:
    """A tensor (n, m, ...) with a scale for each output channel (n,) and each input channel (m,)."""

    tensor: torch.Tensor
    rows: Array
    columns: Array

    @classmethod
    def of(cls, tensor: torch.Tensor, axis: int = 0) -> Balanced:
        """Balance a tensor of at least two axes, whose output channels lie along `axis`.

        Channels of zeros keep scale 0.
        """
        tensor = tensor.detach().movedim(axis, 0)
        n, m = tensor.shape[:2]
        plain = cls(tensor, np.ones(n, np.float32), np.ones(m, np.float32))
        largest = float(tensor.abs().max())
        if not largest:
            return cls(tensor, np.zeros(n, np.float32), np.zeros(m, np.float32))
        energies = _Energies(plain, largest)
        columns = np.ones(m, np.float32)
        for _ in range(_ROUNDS):
            before, sums = columns, np.zeros(m)
            rows = np.ones(n, np.float32)
            for part, energy in energies:
                rows[part] = _inverse(energy @ columns / m)
                sums += rows[part] @ energy
            columns = _inverse(sums / n)
            if np.abs(columns - before).max() <= _TOLERANCE * np.abs(before).max():
                break
        return cls(tensor, np.sqrt(rows) / np.float32(largest), np.sqrt(columns))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the numbers of output channels, input channels and places."""
        n, m, *places = self.tensor.shape
        return n, m, prod(places)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield blocks (rows, m, p) of the balanced matrix with the rows that they are."""
        n, m, p = self.shape
        step = max(_BLOCK // max(m * p, 1), 1)
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            block = self.tensor[part].to("cpu", torch.float32).reshape(-1, m, p).numpy()
            yield part, block * self.rows[part, None, None] * self.columns[:, None]


class _Energies:
    """Blocks (rows, m) of mean squares over the places, kept where they are few enough."""

    def __init__(self, plain: Balanced, largest: float) -> None:
        self._plain, self._scale = plain, np.float32(1 / largest)
        n, m, _ = plain.shape
        self._kept = [*self._blocks()] if n * m <= _MOST_ENERGIES else None

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        return iter(self._kept) if self._kept is not None else self._blocks()

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        for part, x in self._plain.blocks():
            x *= self._scale
            yield part, np.square(x, out=x).mean(2) if x.shape[2] > 1 else np.square(x)[..., 0]


def _inverse(x: npt.NDArray[np.floating]) -> Array:
    out = np.zeros(len(x), np.float32)
    np.divide(1.0, x, out=out, where=x > _LEAST, casting="unsafe")
    return out
