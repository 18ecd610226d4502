"""A matrix with each channel brought to the same size, a block of rows at a time.

Scaling rows and columns in turn until all have mean square 1 (Sinkhorn and Knopp 1967) has one limit,
whatever the scales of channels were before, and the same one for the transposed matrix: a norm that is folded
in, or a factor that two consecutive layers share between them, leaves no trace.
The method: docs/explanation/sane.md, section 17.1.

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
_BLOCK = 2**22  # values in single precision at a time


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
        whole = cls(tensor, np.ones(n, np.float32), np.ones(m, np.float32))
        largest = max((float(np.abs(x).max()) for _, x in whole._plain() if x.size), default=0.0)
        if not largest:
            return cls(tensor, np.zeros(n, np.float32), np.zeros(m, np.float32))
        rows, columns = np.ones(n), np.ones(m)
        for _ in range(_ROUNDS):
            sums = np.zeros(m)
            for part, x in whole._plain():
                energy = np.square(x / largest).mean(2, dtype=np.float64)
                rows[part] = _inverse(energy @ columns / m)
                sums += rows[part] @ energy
            columns = _inverse(sums / n)
        return cls(
            tensor,
            np.sqrt(rows).astype(np.float32) / np.float32(largest),
            np.sqrt(columns).astype(np.float32),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the numbers of output channels, input channels and places."""
        n, m, *places = self.tensor.shape
        return n, m, prod(places)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield blocks (rows, m, p) of the balanced matrix with the rows that they are."""
        for part, x in self._plain():
            yield part, x * self.rows[part, None, None] * self.columns[:, None]

    def _plain(self) -> Iterator[tuple[slice, Array]]:
        n, m, p = self.shape
        step = max(_BLOCK // max(m * p, 1), 1)
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            block = self.tensor[part].to("cpu", torch.float32)
            yield part, block.reshape(-1, m, p).numpy()


def _inverse(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(1.0, x, out=np.zeros_like(x), where=x > 0)
