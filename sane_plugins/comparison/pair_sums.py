"""Sums over two tensors of one shape, a block of rows at a time.

The method: docs/explanation/sane.md, section 21.2.

Legend: n output channels, m input channels, p places of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

_BLOCK = 2**20  # values in double precision at a time


def paired_blocks(
    a: torch.Tensor, b: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield blocks (rows, m, p) float64 of two tensors (n, m, ...) with the rows that they are."""
    n, m, p = matrix_shape(a)
    step = max(_BLOCK // max(m * p, 1), 1)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        x, y = (part[rows].to("cpu", torch.float64).reshape(-1, m, p) for part in (a, b))
        yield rows, x, y


def matrix_shape(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Return (n, m, p) of a tensor whose output channels come first; a vector is one row of n = 1."""
    n, m, *places = tensor.shape if tensor.ndim > 1 else (1, tensor.numel())
    return n, m, prod(places)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSums:
    """What two tensors have in common, before any factor is taken out.

    Counts of values: `size`, `equal` (the same number in both), `zeros_a` and `zeros_b` (zero in one, not
    in the other), `nonzero_a` and `nonzero_b`. `energy_a` and `energy_b` are sums of squares. Over values
    that are zero in neither: by output channel `rows` (3, n) and by input channel `columns` (3, m), each
    of a², b² and ab. `correlation` is that of all values, the mean of each place of a kernel taken off.
    """

    size: int
    equal: int
    zeros_a: int
    zeros_b: int
    nonzero_a: int
    nonzero_b: int
    energy_a: float
    energy_b: float
    rows: torch.Tensor
    columns: torch.Tensor
    correlation: float
    is_finite: bool

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor) -> PairSums:
        """Sum over two tensors of one shape, output channels first."""
        n, m, p = matrix_shape(a)
        rows, columns = torch.zeros(3, n).double(), torch.zeros(3, m).double()
        places = torch.zeros(5, p).double()  # a, b, a², b², ab
        counts = torch.zeros(5, dtype=torch.int64)
        is_finite = True
        shaped = [x if x.ndim > 1 else x.reshape(1, -1) for x in (a, b)]
        for part, x, y in paired_blocks(*shaped):
            same = (x == y) | (x.isnan() & y.isnan())
            is_x, is_y = x != 0, y != 0
            counts += torch.tensor(
                [int(found.sum()) for found in (same, is_y & ~is_x, is_x & ~is_y, is_x, is_y)]
            )
            finite = x.isfinite() & y.isfinite()
            if not bool(finite.all()):
                is_finite = False
                x, y = x.where(finite, 0.0), y.where(finite, 0.0)
            squares_x, squares_y, products = x * x, y * y, x * y
            places += torch.stack([v.sum((0, 1)) for v in (x, y, squares_x, squares_y, products)])
            for i, values in enumerate((squares_x * is_y, squares_y * is_x, products)):
                rows[i, part] = values.sum((1, 2))
                columns[i] += values.sum((0, 2))
        return cls(
            size=n * m * p,
            equal=int(counts[0]),
            zeros_a=int(counts[1]),
            zeros_b=int(counts[2]),
            nonzero_a=int(counts[3]),
            nonzero_b=int(counts[4]),
            energy_a=float(places[2].sum()),
            energy_b=float(places[3].sum()),
            rows=rows,
            columns=columns,
            correlation=_correlation(places, n * m),
            is_finite=is_finite,
        )


def _correlation(places: torch.Tensor, count: int) -> float:
    """Return the correlation of two tensors from sums (5, p) over `count` values of each place."""
    a, b, squares_a, squares_b, products = places
    spread_a = float((squares_a - a * a / max(count, 1)).sum())
    spread_b = float((squares_b - b * b / max(count, 1)).sum())
    product = float((products - a * b / max(count, 1)).sum())
    scale = (max(spread_a, 0.0) * max(spread_b, 0.0)) ** 0.5
    floor = 1e-12 * (float(squares_a.sum()) * float(squares_b.sum())) ** 0.5
    return max(-1.0, min(1.0, product / scale)) if scale > floor else 0.0
