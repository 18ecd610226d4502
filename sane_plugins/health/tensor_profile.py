"""What one pass over a tensor tells of it: moments, energies of rows and columns, a sample of values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sane_plugins.display import ShortRepr
from sane_plugins.weights import MAX_VALUE, Param

Array = npt.NDArray[np.float64]
_CHUNK_SIZE = 1 << 20  # values converted to float64 at a time
_SAMPLE_SIZE = 1 << 15
_FAR = 64.0  # squared, in mean squares
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TensorProfile(ShortRepr):
    """Statistics of a tensor as a matrix: a row per output channel, a column per input and place.

    A tensor of one axis is one row. `fourth` is the mean fourth power, `sample` holds up to 2^16 of the
    values, evenly spaced and sorted. `unusable` counts values that are NaN, infinite or too large to be
    weights; where there are some, nothing else is measured.
    """

    shape: tuple[int, int]
    unusable: int
    low: float
    high: float
    fourth: float
    row_sums: Array
    row_powers: Array
    column_sums: Array
    column_powers: Array
    sample: Array

    @property
    def size(self) -> int:
        """Return the number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def mean(self) -> float:
        """Return the mean."""
        return float(self.row_sums.sum() / self.size)

    @property
    def power(self) -> float:
        """Return the mean square."""
        return float(self.row_powers.sum() / self.size)

    @property
    def variance(self) -> float:
        """Return the mean squared deviation."""
        return max(self.power - self.mean**2, 0.0)

    @property
    def largest(self) -> float:
        """Return the largest absolute value."""
        return max(-self.low, self.high)

    def without_sample(self) -> TensorProfile:
        """Return the profile without the sample, which is most of its memory."""
        return replace(self, sample=np.zeros(0))

    def moments_without_outliers(self) -> tuple[float, float, float]:
        """Return mean, variance and kurtosis without the lowest and highest value, where these lie far out.

        torch's `trunc_normal_` draws one value in some millions at its bounds, a hundred deviations out.
        """
        far = [x for x in (self.low, self.high) if x**2 > _FAR * self.power]
        count = self.size - len(far)
        mean = (self.mean * self.size - sum(far)) / count
        power = (self.power * self.size - sum(x**2 for x in far)) / count
        fourth = (self.fourth * self.size - sum(x**4 for x in far)) / count
        variance = max(power - mean**2, 0.0)
        return mean, variance, fourth / max(variance, _TINY) ** 2

    @property
    def is_constant(self) -> bool:
        """Return whether all values are the same."""
        return self.low == self.high


def profile_tensor(tensor: torch.Tensor, param: Param) -> TensorProfile:
    """Measure a tensor of `param`, which must hold values, a million at a time."""
    tensor = tensor.detach()
    moved = tensor.movedim(param.axis, 0) if tensor.ndim > 1 else tensor.reshape(1, -1)
    rows = len(moved)
    columns = param.size // rows
    row_sums, row_powers, fourths = np.zeros(rows), np.zeros(rows), 0.0
    column_sums, column_powers = np.zeros(columns), np.zeros(columns)
    low, high, unusable, start = np.inf, -np.inf, 0, 0
    step, sample = max(1, param.size // _SAMPLE_SIZE), []
    for block in _blocks(moved, columns):
        end = start + len(block)
        unusable += block.numel() - int((block.abs() <= MAX_VALUE).sum())
        if not unusable:
            smallest, largest = torch.aminmax(block)
            low, high = min(low, smallest.item()), max(high, largest.item())
            squares = block.square()
            row_sums[start:end], row_powers[start:end] = (
                _array(block.sum(1)),
                _array(squares.sum(1)),
            )
            column_sums += _array(block.sum(0))
            column_powers += _array(squares.sum(0))
            fourths += squares.square().sum().item()
            sample.append(_array(block.reshape(-1)[(-start * columns) % step :: step]))
        start = end
    return TensorProfile(
        shape=(rows, columns),
        unusable=unusable,
        low=low,
        high=high,
        fourth=fourths / param.size,
        row_sums=row_sums,
        row_powers=row_powers,
        column_sums=column_sums,
        column_powers=column_powers,
        sample=np.sort(np.concatenate(sample)) if sample else np.zeros(0),
    )


def _blocks(moved: torch.Tensor, columns: int) -> Iterator[torch.Tensor]:
    """Yield blocks (rows, columns) of whole rows in float64."""
    for block in moved.split(max(1, _CHUNK_SIZE // columns)):
        flat = block.reshape(len(block), -1)
        yield (flat.float() if flat.dtype.itemsize == 1 else flat).double()


def _array(x: torch.Tensor) -> Array:
    return np.asarray(x.cpu().numpy())
