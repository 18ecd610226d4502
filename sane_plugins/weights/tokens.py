"""Cut weights into tokens (T, D) and put them back, bit for bit.

Legend: T tokens, D token width. A *slot* is one matrix of a layer, with the bias that goes with it as
one more column. Each row of a slot (one output channel) is cut into pieces of D values. The
method: docs/explanation/sane.md, sections 1.1 and 1.2; paper section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import Param, WeightGraph


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

    def mask(self, width: int) -> torch.Tensor:
        """Return which values of its tokens are real, (n, D)."""
        real = torch.arange(ceil(self.columns / width) * width) < self.columns
        return real.view(-1, width).repeat(self.rows, 1)


@dataclass(frozen=True, eq=False, repr=False)
class Tokens(ShortRepr):
    """Weight tokens of one network.

    values (T, D) float, mask (T, D) bool (true where a value is real), positions (T, 3) int64: place
    in the sequence, slot number, channel number.
    """

    values: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Return the half-open range of tokens of each slot."""
        ends = list(accumulate(torch.bincount(self.positions[:, 1]).tolist()))
        return list(zip([0, *ends[:-1]], ends, strict=True))


def slots(graph: WeightGraph) -> tuple[Slot, ...]:
    """Return the slots of a network in network order.

    A vector that follows a matrix of its own layer and has one value per output channel is that
    matrix's bias. A vector alone, and a matrix with one column, is one row.
    """
    seen: set[str] = set()
    found: list[Slot] = []
    for layer in graph.layers:
        fresh = [p for p in layer.params if p.key not in seen and p.size]
        seen.update(p.key for p in fresh)
        while fresh:
            weight = fresh.pop(0)
            rows = weight.shape[weight.axis] if len(weight.shape) > 1 else 1
            has_bias = bool(fresh) and len(weight.shape) > 1 and fresh[0].shape == (rows,)
            bias = fresh.pop(0) if has_bias else None
            columns = weight.size // rows + has_bias
            if columns == 1:
                rows, columns = 1, rows
            found.append(
                Slot(layer=layer.name, weight=weight, bias=bias, rows=rows, columns=columns)
            )
    return tuple(found)


def token_positions(parts: tuple[Slot, ...], width: int) -> torch.Tensor:
    """Return (T, 3) int64: place in the sequence, slot number, channel number."""
    # One column after the other in memory, as they are written and read.
    found = torch.empty(3, sum(s.tokens(width) for s in parts), dtype=torch.int64).T
    torch.arange(len(found), out=found[:, 0])
    start = 0
    for i, slot in enumerate(parts):
        own = found[start : start + slot.tokens(width)]
        own[:, 1] = i
        own[:, 2].view(slot.rows, -1).copy_(torch.arange(slot.rows)[:, None])
        start += len(own)
    return found


def tokenize(graph: WeightGraph, width: int, device: torch.device | str = "cpu") -> Tokens:
    """Cut a network into tokens on `device`, reading one tensor at a time.

    Values are float32, or float64 where the network has a float64 tensor, so that nothing is lost.
    """
    parts = slots(graph)
    # float32 holds every value of a narrower type; only float64 needs more.
    is_double = any(param.dtype == torch.float64 for param in graph.params)
    dtype = torch.float64 if is_double else torch.float32
    total = sum(s.tokens(width) for s in parts)
    # Fresh memory is written once, in few large steps: values in place, zeros only where rows end.
    values = torch.empty(total, width, dtype=dtype, device=device)
    mask = torch.empty(total, width, dtype=torch.bool, device=device)
    for slot, block, filled in zip(
        parts, _blocks(values, parts), _blocks(mask, parts), strict=True
    ):
        _fill(block, graph, slot)
        block[:, slot.columns :] = 0
        filled.copy_(torch.arange(block.shape[1], device=device) < slot.columns)
    return Tokens(values, mask, token_positions(parts, width).to(device))


def detokenize(tokens: Tokens, graph: WeightGraph) -> WeightGraph:
    """Put tokens back into the network that they were cut from, or one of the same shapes.

    Raises `SourceError` where the number of tokens does not fit the network.
    """
    parts = slots(graph)
    needed = sum(s.tokens(tokens.values.shape[1]) for s in parts)
    if len(tokens) != needed:
        raise SourceError(
            graph.source,
            f"{len(tokens)} tokens were given",
            f"this network takes {needed}",
            "use the tokens of a network of the same shapes",
        )
    tensors: dict[str, torch.Tensor] = {}
    for slot, block in zip(parts, _blocks(tokens.values, parts), strict=True):
        matrix = block[:, : slot.columns]
        if slot.bias is not None:
            tensors[slot.bias.key] = _whole(matrix[:, -1], slot.bias)
            matrix = matrix[:, :-1]
        tensors[slot.weight.key] = _whole(matrix, slot.weight)
    return graph.replace(tensors)


def by_rows(tensor: torch.Tensor, param: Param) -> torch.Tensor:
    """Return a view of a slot's tensor whose first axis is that of its rows."""
    return tensor.movedim(param.axis, 0) if tensor.ndim > 1 else tensor


def _blocks(rows: torch.Tensor, parts: tuple[Slot, ...]) -> Iterator[torch.Tensor]:
    """Yield each slot's tokens as a view (rows, pieces * D)."""
    counts = [s.tokens(rows.shape[1]) for s in parts]
    for slot, block in zip(parts, rows.split(counts), strict=True):
        yield block.view(slot.rows, -1)


def _fill(block: torch.Tensor, graph: WeightGraph, slot: Slot) -> None:
    """Copy a slot's weight, and its bias as the last column, into its tokens (rows, pieces * D)."""
    weight = by_rows(_to(graph.tensors[slot.weight.key], block), slot.weight)
    columns = block[:, : slot.columns - (slot.bias is not None)]
    # A view of the tokens with the tensor's own shape takes any order of axes in one copy.
    columns.view(weight.shape if weight.ndim else (1, 1)).copy_(weight)
    if slot.bias is not None:
        block[:, slot.columns - 1].copy_(_to(graph.tensors[slot.bias.key], block))


def _to(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Move a tensor to the tokens' device, without waiting where CUDA allows it."""
    if like.is_cuda and not tensor.is_cuda:
        tensor = tensor.contiguous().pin_memory()
    return tensor.detach().to(like.device, non_blocking=like.is_cuda)


def _whole(matrix: torch.Tensor, param: Param) -> torch.Tensor:
    """Return the tensor (own memory, own type) whose rows these are."""
    tensor = torch.empty(param.shape, dtype=param.dtype, device=matrix.device)
    rows = by_rows(tensor, param)
    rows.copy_(matrix.view(rows.shape))
    return tensor
