"""Standardised tokens of a network of any size, a few rows at a time.

The method: docs/explanation/sane.md, sections 1.3 and 2.1.

Each tensor is read once, with one block of tokens in memory at a time. Concatenated, the blocks are the
tokens of `tokenize(apply_scale(graph, fit_scale(graph)))`, except that half precision is
standardised in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil, isfinite

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.scale import slot_scale
from sane_plugins.weights.token_layout import Slot
from sane_plugins.weights.tokens import cut_rows

_MAX_TOKENS_PER_BLOCK = 4096
_SUSPECT = 1e30  # means and deviations of a weight are far smaller


@dataclass(frozen=True, eq=False, repr=False)
class TokenBlock(ShortRepr):
    """Consecutive tokens of one slot: standardised values (n, D) float32, and the slot's side (4,)."""

    slot: int
    values: torch.Tensor
    side: torch.Tensor


def token_blocks(
    graph: WeightGraph,
    width: int,
    device: torch.device | str = "cpu",
    most: int = _MAX_TOKENS_PER_BLOCK,
) -> Iterator[TokenBlock]:
    """Yield all tokens of a network in order, at most `most` at a time.

    Raises `SourceError` where a weight is not finite.
    """
    for i, slot in enumerate(graph.slots):
        rows, scale, side = _read_slot(graph, slot, torch.device(device))
        for row_range, column_range in _block_ranges(slot, width, most):
            block = side.new_empty(
                row_range.stop - row_range.start, column_range.stop - column_range.start
            )
            row_tensors = [tensor[row_range] for tensor in rows]
            cut_rows(block, slot, row_tensors, first=column_range.start, scale=scale)
            yield TokenBlock(i, block.view(-1, width), side)
        del rows, row_tensors  # before the next tensor is read


def _read_slot(
    graph: WeightGraph, slot: Slot, device: torch.device
) -> tuple[list[torch.Tensor], list[tuple[float, float]], torch.Tensor]:
    """Return the rows of a slot's tensors, mean and deviation of each, and the slot's side (4,)."""
    tensors = [graph.tensors[param.key].detach() for param in slot.params]
    statistics = slot_scale(*tensors)
    means_and_deviations = list(
        zip(statistics.mean[0].tolist(), statistics.deviation[0].tolist(), strict=True)
    )
    # Values that are too large are found here, whatever their number: a mean of many is not that large.
    is_usual = all(isfinite(x) and abs(x) < _SUSPECT for x in chain(*means_and_deviations))
    if not is_usual and graph.require_finite() is not graph:
        raise SourceError(
            graph.source,
            "it has constants with infinite values",
            "they are no weights, and left out before it is encoded",
            "encode what graph.require_finite() returns",
        )
    rows = [slot.row_view(p, t.to(device)) for p, t in zip(slot.params, tensors, strict=True)]
    return rows, means_and_deviations, statistics.side[0].to(device)


def _block_ranges(slot: Slot, width: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield the row and column range of each block: one row is split where it exceeds `most` tokens."""
    pieces = ceil(slot.columns / width)
    step = max(most // pieces, 1)
    for row in range(0, slot.rows, step):
        for piece in range(0, pieces, most):
            last = min(piece + most, pieces)
            yield slice(row, min(row + step, slot.rows)), slice(piece * width, last * width)
