"""Standardised tokens of a network of any size, a few rows at a time.

The method: docs/explanation/sane.md, sections 1.3 and 2.1.

Each tensor is read once; beside it only a block of tokens is in memory. Joined, the blocks are the tokens
of `tokenize(apply_scale(graph, fit_scale(graph)))`, except that half precision is standardised in single.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil, isfinite

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.scale import slot_scale
from sane_plugins.weights.token_layout import Slot
from sane_plugins.weights.tokens import cut_rows

_MOST = 4096  # tokens of a block


@dataclass(frozen=True, eq=False, repr=False)
class TokenBlock(ShortRepr):
    """Consecutive tokens of one slot: standardised values (n, D) float32, and the slot's side (4,)."""

    slot: int
    values: torch.Tensor
    side: torch.Tensor


def token_blocks(
    graph: WeightGraph, width: int, device: torch.device | str = "cpu", most: int = _MOST
) -> Iterator[TokenBlock]:
    """Yield all tokens of a network in order, at most `most` at a time.

    Raises `SourceError` where a weight is not finite.
    """
    for i, slot in enumerate(graph.slots):
        rows, scale, side = _read(graph, slot, torch.device(device))
        for own, columns in _shares(slot, width, most):
            block = side.new_empty(own.stop - own.start, columns.stop - columns.start)
            parts = [tensor[own] for tensor in rows]
            cut_rows(block, slot, parts, first=columns.start, scale=scale)
            yield TokenBlock(i, block.view(-1, width), side)
        del rows, parts  # before the next tensor is read


def _read(
    graph: WeightGraph, slot: Slot, device: torch.device
) -> tuple[list[torch.Tensor], list[tuple[float, float]], torch.Tensor]:
    """Return the rows of a slot's tensors, mean and deviation of each, and the slot's side (4,)."""
    tensors = [graph.tensors[param.key].detach() for param in slot.params]
    own = slot_scale(*tensors)
    pairs = list(zip(own.mean[0].tolist(), own.deviation[0].tolist(), strict=True))
    if not all(map(isfinite, chain(*pairs))):
        graph.require_finite()
    rows = [slot.row_view(p, t.to(device)) for p, t in zip(slot.params, tensors, strict=True)]
    return rows, pairs, own.side[0].to(device)


def _shares(slot: Slot, width: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield ranges of rows and of their columns: a row alone is split where it is too long."""
    pieces = ceil(slot.columns / width)
    step = max(most // pieces, 1)
    for row in range(0, slot.rows, step):
        for piece in range(0, pieces, most):
            last = min(piece + most, pieces)
            yield slice(row, min(row + step, slot.rows)), slice(piece * width, last * width)
