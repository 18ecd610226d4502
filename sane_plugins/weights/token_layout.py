"""Layout of a network's tensors in its tokens; determined by their shapes alone.

The method: docs/explanation/sane.md, sections 1.1 and 1.2.

Legend: T tokens, D token width, M slots. A *slot* is one matrix of a layer, with its bias as one more
column. Each row of a slot (one output channel) is cut into pieces of D values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil, prod

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.weights.layers import Layer, Param


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One matrix of a layer as rows of `columns` values; the last column is the bias, if any."""

    layer: str
    weight: Param
    bias: Param | None
    rows: int
    columns: int

    def tokens(self, width: int) -> int:
        """Return how many tokens of `width` values the slot fills."""
        return self.rows * ceil(self.columns / width)

    def row_mask(self, width: int) -> torch.Tensor:
        """Return the mask (pieces, D) of real values in a row's tokens; the others pad its end."""
        pieces = ceil(self.columns / width)
        return (torch.arange(pieces * width) < self.columns).view(pieces, width)

    @property
    def params(self) -> tuple[Param, ...]:
        """Return the weight and, where there is one, the bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def row_view(self, param: Param, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view (rows, ...) of the slot's weight or bias whose first axis is the rows."""
        rows = tensor.movedim(param.axis, 0) if param.axis and tensor.ndim > 1 else tensor
        return rows if rows.ndim and len(rows) == self.rows else rows.view(1, -1)


def find_slots(layers: Iterable[Layer]) -> tuple[Slot, ...]:
    """Return the slots of layers in their order; a tied tensor is in the slot of its first use.

    A vector that follows the only matrix of its layer and has one value per output channel is that
    matrix's bias. A vector alone, and a matrix with one column, is one row.
    """
    seen: set[str] = set()
    slots: list[Slot] = []
    for layer in layers:
        is_plain = sum(len(p.shape) > 1 for p in layer.params) == 1
        unassigned = deque(p for p in layer.params if p.key not in seen and 0 not in p.shape)
        seen.update(p.key for p in unassigned)
        while unassigned:
            weight = unassigned.popleft()
            rows = weight.shape[weight.axis] if len(weight.shape) > 1 else 1
            has_bias = is_plain and len(weight.shape) > 1 and bool(unassigned)
            has_bias = has_bias and unassigned[0].shape == (rows,)
            bias = unassigned.popleft() if has_bias else None
            columns = prod(weight.shape) // rows + has_bias
            if columns == 1:
                rows, columns = 1, rows
            slots.append(
                Slot(layer=layer.name, weight=weight, bias=bias, rows=rows, columns=columns)
            )
    return tuple(slots)


@dataclass(frozen=True, eq=False, repr=False)
class TokenLayout(ShortRepr):
    """Layout of M slots in T tokens of `width` values.

    first, channels, columns and pieces (M,) int64: the slot's first token, its rows (each a channel), values
    and tokens of a row.
    """

    slots: tuple[Slot, ...]
    width: int
    spans: tuple[tuple[int, int], ...]
    first: torch.Tensor
    channels: torch.Tensor
    columns: torch.Tensor
    pieces: torch.Tensor

    @classmethod
    def of(cls, slots: Sequence[Slot], width: int) -> TokenLayout:
        """Return the layout of slots cut into tokens of `width` values."""
        ends = list(accumulate(slot.tokens(width) for slot in slots))
        spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
        sizes = [
            (start, slot.rows, slot.columns, (stop - start) // slot.rows)
            for slot, (start, stop) in zip(slots, spans, strict=True)
        ]
        return cls(tuple(slots), width, spans, *torch.tensor(sizes).unbind(1))

    def __len__(self) -> int:
        return self.spans[-1][1]

    def to(self, device: torch.device | str) -> TokenLayout:
        """Return the layout with its tensors on a device."""
        return replace(
            self,
            first=self.first.to(device),
            channels=self.channels.to(device),
            columns=self.columns.to(device),
            pieces=self.pieces.to(device),
        )

    def blocks(self, tokens: torch.Tensor) -> Iterator[tuple[Slot, torch.Tensor]]:
        """Yield each slot with its part of `tokens` (T, D) as a view (rows, pieces * D)."""
        counts = [stop - start for start, stop in self.spans]
        for slot, block in zip(self.slots, tokens.split(counts), strict=True):
            yield slot, block.view(slot.rows, -1)

    def mask(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the mask (T, D) bool of real values in the tokens; the others pad the end of a row."""
        mask = torch.empty(len(self), self.width, dtype=torch.bool, device=device)
        for slot, block in self.blocks(mask):
            block.copy_(slot.row_mask(self.width).flatten())
        return mask

    def slot_numbers(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return the slot number of each token of a range, (stop - start,)."""
        stop, last = len(self) if stop is None else stop, self.first + self.channels * self.pieces
        counts = last.clamp(start, stop) - self.first.clamp(start, stop)
        numbers = torch.arange(len(counts), device=counts.device)
        return numbers.repeat_interleave(counts, output_size=stop - start)

    def positions(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return the positions of a range of tokens, (stop - start, 3): in the sequence, slot, channel."""
        slot = self.slot_numbers(start, stop)
        n = torch.arange(start, start + len(slot), device=slot.device)
        return torch.stack([n, slot, (n - self.first[slot]) // self.pieces[slot]], 1)
