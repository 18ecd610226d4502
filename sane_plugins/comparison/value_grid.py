"""Do a tensor's values lie on a coarse grid, as dequantised ones do?

The method: docs/explanation/sane.md, section 21.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import torch

_MAX_STEPS = 255  # of 8 bits
_UNITS = 48  # rows or blocks that are looked at
_VALUES = 256  # of a unit that are looked at
_LEAST_VALUES = 6  # of a unit
_LEAST_LEVELS = 3  # different values of a unit; two lie on some grid always
_MOST_LEVELS = 16  # of values that are any distance apart, as 4-bit floats are
_FIRST_UNITS, _FIRST_VALUES = 8, 32  # that are looked at first: most tensors lie on no grid
_BLOCKS = (32, 64, 128, 256)  # values that share a scale, in forms with scales of blocks
_TOLERANCE = 0.02  # of a step
_SHARE = 0.9  # of the units that must lie on a grid
_MAX_CANDIDATES = 2**22  # values computed at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Values of a tensor lie a whole number of steps apart, in units that have a step each.

    `unit` is `tensor`, `channel` or the number of values of a block; `bits` what the widest unit needs.
    """

    unit: str
    bits: int
    places: torch.Tensor
    steps: torch.Tensor

    def in_steps(self, error: torch.Tensor) -> torch.Tensor:
        """Return errors of those values that were looked at, in steps of their unit."""
        return (error.reshape(-1)[self.places] / self.steps[:, None]).abs()


def find_grid(tensor: torch.Tensor, precision: float) -> Grid | None:
    """Return the grid that a tensor's values (n, ...) lie on, by a sample of them; None if there is none.

    `precision` is the relative step of the type that the values were computed in.
    """
    flat = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    n, width = flat.shape
    if n * width < _LEAST_VALUES:
        return None
    units = [("tensor", 1, n * width)]
    if n > 1 and width >= _LEAST_VALUES:
        units.append(("channel", n, width))
    units += [(str(k), n * width // k, k) for k in _BLOCKS if width % k == 0 and width > k]
    values = tensor.reshape(-1)
    for unit, count, length in units:
        places = _spaced(count, _UNITS)[:, None] * length + _spaced(length, _VALUES)
        if grid := _grid_of(values, unit, places, precision):
            return grid
    return None


def _spaced(count: int, most: int) -> torch.Tensor:
    """Return at most so many evenly spaced numbers below `count`."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * (count - 1) // (most - 1)


def _grid_of(
    values: torch.Tensor, unit: str, places: torch.Tensor, precision: float
) -> Grid | None:
    sample = values[places.to(values.device)].to("cpu", torch.float64)
    first = sample[:_FIRST_UNITS, :_FIRST_VALUES]
    may_be_even = bool((_widths(first, precision) > 0).any())
    if not may_be_even and places.shape[1] < 4 * _MOST_LEVELS:
        return None
    levels = torch.tensor([len(row.unique()) for row in sample])
    is_varied = (levels >= _LEAST_LEVELS) & (levels >= min(_LEAST_VALUES, places.shape[1] // 16))
    if not bool(is_varied.any()):
        return None
    places, sample, levels = places[is_varied], sample[is_varied], levels[is_varied]
    widths, gaps = torch.zeros(len(sample)), sample.amax(1) - sample.amin(1)
    if may_be_even:
        widths = _widths(sample, precision)
    is_found = widths > 0
    if float(is_found.double().mean()) < _SHARE:
        if places.shape[1] < 4 * _MOST_LEVELS or int(levels.max()) > _MOST_LEVELS:
            return None
        widths, gaps = levels - 1, _largest_gaps(sample) * (levels - 1)
        is_found = widths > 0
    return Grid(
        unit=unit,
        bits=max(1, ceil(log2(int(widths.max()) + 1))),
        places=places[is_found],
        steps=(gaps / widths)[is_found],
    )


def _largest_gaps(sample: torch.Tensor) -> torch.Tensor:
    """Return the largest distance of two neighbouring values of each row."""
    return sample.sort(1).values.diff(dim=1).amax(1)


def _widths(sample: torch.Tensor, precision: float) -> torch.Tensor:
    """Return in how few equal steps each row's range falls so that all its values lie on them; 0: in none."""
    low = sample.amin(1, keepdim=True)
    spread = (sample.amax(1, keepdim=True) - low).clamp(min=1e-300)
    relative = (sample - low) / spread  # (units, values)
    widths = torch.zeros(len(sample), dtype=torch.int64)
    rounding = (precision * sample.abs().amax(1) / spread[:, 0]).clamp(min=1e-9)
    candidates = torch.arange(1, _MAX_STEPS + 1, dtype=torch.float64)
    step = max(_MAX_CANDIDATES // (relative[0].numel() * len(candidates)), 1)
    for start in range(0, len(sample), step):
        rows = slice(start, start + step)
        scaled = relative[rows, None, :] * candidates[:, None]
        distance = (scaled - scaled.round()).abs().amax(2)
        allowed = (4 * rounding[rows, None] * candidates).clamp(max=_TOLERANCE)
        fits = distance <= allowed
        widths[rows] = torch.where(fits.any(1), fits.int().argmax(1) + 1, 0)
    return widths
