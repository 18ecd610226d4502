"""What a convolutional network's maps hold over the cells of a transformer's grid, at several depths.

The method: docs/explanation/sane.md, section 16.4.
"""

from __future__ import annotations

import torch

from sane_plugins.grafting.fitting import FeatureRequest, PreparedNetwork, source_features
from sane_plugins.grafting.units import NetworkUnits, Unit

_DEPTHS = (0.15, 0.4, 0.7, 1.0)  # shares of the blocks


def token_maps(
    source: PreparedNetwork, units: NetworkUnits, grid: tuple[int, int], width: int
) -> tuple[torch.Tensor, ...]:
    """Return maps of a source (N, cells, C) for each depth, over the cells of a grid (height, width).

    Where a map is finer than the grid, the parts of a cell, 4, 16 or 64, lie side by side as long as they are
    no more than `width` numbers; else means are taken. Empty where no block ends with a map.
    """
    ends = _ends(units)
    picked = dict.fromkeys(ends[round(share * (len(ends) - 1))] for share in _DEPTHS if ends)
    parts = {unit.name: _parts(unit, len(units.weight(unit)), grid, width) for unit in picked}
    requests = {
        unit.name: FeatureRequest(
            layer=unit.name,
            channels=torch.arange(len(units.weight(unit)), device=source.images.device),
            grid=(grid[0] * parts[unit.name], grid[1] * parts[unit.name]),
            positions=torch.arange(
                len(source.images) * grid[0] * grid[1] * parts[unit.name] ** 2,
                device=source.images.device,
            ),
            activation=unit.activation,
        )
        for unit in picked
    }
    found = source_features(source, requests)
    return tuple(_by_cell(found[name], grid, count) for name, count in parts.items())


def _ends(units: NetworkUnits) -> list[Unit]:
    """Return the last unit of the body of each block, of those that return maps."""
    bodies = ([unit for unit in block if unit.place == "body"] for block in units.blocks)
    return [body[-1] for body in bodies if body and len(body[-1].grid) == 2]


def _parts(unit: Unit, channels: int, grid: tuple[int, int], width: int) -> int:
    """Return into how many parts a side of a cell is divided."""
    count = 1
    finest = min(have / want for have, want in zip(unit.grid, grid, strict=True))
    while 2 * count <= finest and channels * (2 * count) ** 2 <= width:
        count *= 2
    return count


def _by_cell(values: torch.Tensor, grid: tuple[int, int], parts: int) -> torch.Tensor:
    """Return values (N * cells * parts^2, C) of a finer grid by cell: (N, cells, parts^2 * C)."""
    rows, columns = grid
    found = values.view(-1, rows, parts, columns, parts, values.shape[1]).transpose(2, 3)
    return found.reshape(len(found), rows * columns, -1)
