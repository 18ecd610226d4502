"""Graft what first writes the stream: patch kernels, class and register tokens, position tables.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sane_plugins.grafting.transformers.branch_weights import BranchWeights
from sane_plugins.grafting.transformers.grids import (
    resize_channels,
    resize_grid,
    resize_kernels,
)
from sane_plugins.grafting.transformers.stream_maps import StreamMap
from sane_plugins.grafting.transformers.structure import LinearPart
from sane_plugins.grafting.transformers.tracing import TableStep, TokenStep


@dataclass(frozen=True, kw_only=True)
class PixelChange:
    """A source's images are the target's times `scale`, plus `shift`: a number per channel each."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]


def graft_embeddings(
    target: BranchWeights,
    source: BranchWeights,
    stream: StreamMap,
    pixels: PixelChange | None = None,
) -> None:
    """Write patch kernels, tokens and position tables through the map of the stream."""
    _graft_patches(target, source, stream, pixels)
    _graft_cells(target, source, stream)
    _graft_prefix(target, source, stream)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prefix:
    """Class and register tokens: `tokens` (n, D), and their rows of a position table, `places` (m, D)."""

    tokens: torch.Tensor
    places: torch.Tensor

    def row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a token and its row of the table; zeros where there is none."""
        zeros = torch.zeros(self.tokens.shape[1])
        token = self.tokens[index] if index < len(self.tokens) else zeros
        return token, self.places[index] if index < len(self.places) else zeros

    def __len__(self) -> int:
        return max(len(self.tokens), len(self.places))


def _read_prefix(weights: BranchWeights) -> _Prefix:
    none = torch.zeros(0, weights.network.width)
    tokens = [_rows(weights, token) for token in weights.network.tokens]
    places = [_rows(weights, table)[table.cells < 0] for table in weights.network.tables]
    return _Prefix(tokens=torch.cat([none, *tokens]), places=torch.cat([none, *places]))


def _graft_prefix(target: BranchWeights, source: BranchWeights, stream: StreamMap) -> None:
    """Write tokens and their rows of the table, or the sum where the target has one of the two only."""
    trained, ours = _read_prefix(source), _read_prefix(target)
    tokens, places = ours.tokens.clone(), ours.places.clone()
    for index in range(min(len(trained), len(ours))):
        token, place = (_written(x, stream) for x in trained.row(index))
        if index < min(len(tokens), len(places)):
            tokens[index], places[index] = token, place
        elif index < len(tokens):
            tokens[index] = token + place
        else:
            places[index] = token + place
    for token_step in target.network.tokens:
        count = len(_rows(target, token_step))
        _set_rows(target, token_step, tokens[:count])
        tokens = tokens[count:]
    for table in target.network.tables:
        rows, is_extra = _rows(target, table).clone(), table.cells < 0
        rows[is_extra] = places[: int(is_extra.sum())]
        places = places[int(is_extra.sum()) :]
        _set_rows(target, table, rows)


def _graft_patches(
    target: BranchWeights, source: BranchWeights, stream: StreamMap, pixels: PixelChange | None
) -> None:
    to, of = patch_layer(target), patch_layer(source)
    if to is None or of is None:
        return
    kernels, bias = kernels_of(source, of), source.bias(of)
    order = torch.tensor(source.network.stream_places(of.step.outputs)).argsort()
    kernels, bias = kernels[order], bias[order]
    if pixels is not None and len(pixels.scale) == kernels.shape[1]:
        bias = bias + kernels.sum((2, 3)) @ torch.tensor(pixels.shift)
        kernels = kernels * torch.tensor(pixels.scale).view(1, -1, 1, 1)
    fresh = kernels_of(target, to)
    kernels = resize_channels(
        resize_kernels(kernels, (fresh.shape[2], fresh.shape[3])), fresh.shape[1]
    )
    if not stream.is_identity:
        kernels = (stream.write @ kernels.flatten(1)).view(-1, *kernels.shape[1:])
        bias = stream.write @ bias
    places = torch.tensor(target.network.stream_places(to.step.outputs))
    set_kernels(target, to, kernels[places])
    target.set_bias(to, bias[places])


def patch_layer(weights: BranchWeights) -> LinearPart | None:
    """Return the layer that turns patches of the image into the stream, if it does so at once."""
    network = weights.network
    parts = [p for p in network.stem if p.step.reads_image and network.is_stream(p.step.outputs)]
    return parts[0] if len(parts) == 1 and parts[0].step.groups == 1 else None


def kernels_of(weights: BranchWeights, part: LinearPart) -> torch.Tensor:
    """Return the weight of a patch layer as kernels (D, C, h, w), rows in their own order."""
    matrix = weights.matrix(part)
    if part.step.pixels is None:
        return matrix
    channels, rows, columns = _pixel_places(part)
    sizes = (int(channels.max()) + 1, int(rows.max()) + 1, int(columns.max()) + 1)
    kernels = torch.zeros(len(matrix), *sizes)
    kernels[:, channels, rows, columns] = matrix
    return kernels


def set_kernels(weights: BranchWeights, part: LinearPart, kernels: torch.Tensor) -> None:
    """Write what `kernels_of` returns."""
    if part.step.pixels is not None:
        channels, rows, columns = _pixel_places(part)
        kernels = kernels[:, channels, rows, columns]
    weights.set_matrix(part, kernels)


def _pixel_places(part: LinearPart) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return image channel, row and column of each input of a linear patch layer."""
    assert part.step.pixels is not None
    channels = (
        part.step.inputs - part.step.inputs.min()
    )  # the nodes of image channels are consecutive
    return channels, *part.step.pixels


def _written(rows: torch.Tensor, stream: StreamMap) -> torch.Tensor:
    """Return rows (n, D) of the source's stream as rows of the target's."""
    return rows if stream.is_identity else rows @ stream.write.T


def _rows(weights: BranchWeights, step: TokenStep | TableStep) -> torch.Tensor:
    return weights.network.rows_of(weights.values[step.key], step.key, step.axis)


def _set_rows(weights: BranchWeights, step: TokenStep | TableStep, rows: torch.Tensor) -> None:
    like = weights.values[step.key]
    weights.set_all(step.key, weights.network.from_rows(rows, like, step.key, step.axis))


def _graft_cells(target: BranchWeights, source: BranchWeights, stream: StreamMap) -> None:
    """Write the rows of a position table that belong to patches, interpolated from grid to grid."""
    for to, of in zip(target.network.tables, source.network.tables, strict=False):
        if of.grid is None or to.grid is None or not (of.cells >= 0).any():
            continue
        trained, rows, ours = _rows(source, of), _rows(target, to).clone(), to.cells >= 0
        cells = torch.zeros(of.grid[0] * of.grid[1], trained.shape[1])
        cells[of.cells[of.cells >= 0]] = trained[of.cells >= 0]
        resized = resize_grid(cells.view(*of.grid, -1), to.grid).flatten(0, 1)
        rows[ours] = _written(resized, stream)[to.cells[ours]]
        _set_rows(target, to, rows)
