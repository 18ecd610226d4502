"""Standardised tokens of a network of any size, a few rows at a time.

The method: docs/explanation/sane.md, sections 1.3 and 2.1.

Each tensor is read once; beside it only a block of tokens is in memory. Joined, the blocks are the tokens
of `tokenize(apply(graph, fit(graph)))`, except that half precision is standardised in single.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isfinite

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.weights import scale
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.tokens import Slot, by_rows, slots

_MOST = 4096  # tokens of a block


@dataclass(frozen=True, eq=False, repr=False)
class TokenBlock(ShortRepr):
    """Consecutive tokens of one slot: standardised values (n, D) float32, and the slot's side (4,)."""

    slot: int
    values: torch.Tensor
    side: torch.Tensor


@dataclass(frozen=True)
class _Part:
    """A tensor of a slot with what standardises it; rows come first."""

    tensor: torch.Tensor
    mean: float
    deviation: float

    def into(self, target: torch.Tensor, rows: slice, columns: slice | None) -> None:
        """Write some rows (or columns of one row) into `target` (rows, columns), standardised."""
        source = self.tensor[rows]
        source = source if columns is None else source.reshape(1, -1)[:, columns]
        target = target.view(source.shape)
        if source.dtype == torch.float64:
            target.copy_((source - self.mean) / self.deviation)
        else:
            target.copy_(source).sub_(self.mean).div_(self.deviation)


def token_blocks(
    graph: WeightGraph, width: int, device: torch.device | str = "cpu", most: int = _MOST
) -> Iterator[TokenBlock]:
    """Yield all tokens of a network in order, at most `most` at a time.

    Raises `SourceError` where a weight is not finite.
    """
    for i, slot in enumerate(slots(graph)):
        parts, side = _read(graph, slot, torch.device(device))
        for rows, pieces in _shares(slot, width, most):
            yield TokenBlock(i, _cut(parts, slot, rows, pieces, width).view(-1, width), side)
        del parts  # before the next tensor is read


def _read(graph: WeightGraph, slot: Slot, device: torch.device) -> tuple[list[_Part], torch.Tensor]:
    params = [slot.weight] if slot.bias is None else [slot.weight, slot.bias]
    tensors = [graph.tensors[param.key].detach() for param in params]
    found = scale.of_slot(tensors[0], tensors[1] if slot.bias is not None else None)
    means, deviations = found.mean[0].tolist(), found.deviation[0].tolist()
    if not all(map(isfinite, (*means, *deviations))):
        graph.require_finite()
    parts = []
    for param, tensor, mean, deviation in zip(params, tensors, means, deviations, strict=False):
        rows = by_rows(tensor.to(device), param)
        rows = rows if rows.ndim and len(rows) == slot.rows else rows.reshape(1, -1)
        parts.append(_Part(rows, mean, deviation))
    return parts, found.side[0].to(device)


def _shares(slot: Slot, width: int, most: int) -> Iterator[tuple[slice, slice | None]]:
    """Yield ranges of rows, or of the pieces of one row where a row alone is too long."""
    pieces = ceil(slot.columns / width)
    if pieces <= most:
        step = most // pieces
        yield from ((slice(r, min(r + step, slot.rows)), None) for r in range(0, slot.rows, step))
        return
    for r in range(slot.rows):
        yield from (
            (slice(r, r + 1), slice(p, min(p + most, pieces))) for p in range(0, pieces, most)
        )


def _cut(
    parts: list[_Part], slot: Slot, rows: slice, pieces: slice | None, width: int
) -> torch.Tensor:
    """Return the block (rows, pieces * D) of these rows, or these pieces of one row."""
    own = slot.columns - (len(parts) - 1)
    whole = pieces or slice(0, ceil(slot.columns / width))
    first, last = whole.start * width, whole.stop * width
    block = parts[0].tensor.new_empty(rows.stop - rows.start, last - first, dtype=torch.float32)
    if first < own:
        columns = slice(first, min(last, own)) if pieces else None
        parts[0].into(block[:, : own - first], rows, columns)
    if len(parts) > 1 and first <= own < last:
        parts[1].into(block[:, own - first : own - first + 1], rows, None)
    block[:, max(slot.columns - first, 0) :] = 0
    return block
