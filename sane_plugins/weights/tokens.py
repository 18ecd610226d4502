"""Cut weights into tokens (T, D) and put them back, bit for bit (spec section 1; paper section 3.1).

Legend: T tokens, D token width. A *slot* is one matrix of a layer, with the bias that goes with it as
one more column. Each row of a slot (one output channel) is cut into pieces of D values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

import torch

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


@dataclass(frozen=True)
class Tokens:
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


def positions(parts: tuple[Slot, ...], width: int) -> torch.Tensor:
    """Return (T, 3) int64: place in the sequence, slot number, channel number."""
    layer = torch.cat([torch.full((s.tokens(width),), i) for i, s in enumerate(parts)])
    channel = torch.cat(
        [torch.arange(s.rows).repeat_interleave(ceil(s.columns / width)) for s in parts]
    )
    return torch.stack([torch.arange(len(layer)), layer, channel], dim=1)


def tokenize(graph: WeightGraph, width: int, device: torch.device | str = "cpu") -> Tokens:
    """Cut a network into tokens on `device`, reading one tensor at a time.

    Values are float32, or float64 where the network has a float64 tensor, so that nothing is lost.
    """
    parts = slots(graph)
    # float32 holds every value of a narrower type; only float64 needs more.
    is_double = any(param.dtype == torch.float64 for param in graph.params)
    dtype = torch.float64 if is_double else torch.float32
    total = sum(s.tokens(width) for s in parts)
    values = torch.zeros(total, width, dtype=dtype, device=device)
    mask = torch.zeros(total, width, dtype=torch.bool, device=device)
    for slot, block, filled in zip(
        parts, _blocks(values, parts), _blocks(mask, parts), strict=True
    ):
        _fill(block, _matrix(graph, slot, values))
        filled[:, : slot.columns] = True
    return Tokens(values, mask, positions(parts, width).to(device))


def detokenize(tokens: Tokens, graph: WeightGraph) -> WeightGraph:
    """Put tokens back into the network that they were cut from, or one of the same shapes.

    Raises `SourceError` where the number of tokens does not fit the network.
    """
    parts = slots(graph)
    needed = sum(s.tokens(tokens.values.shape[1]) for s in parts)
    if len(tokens) != needed:
        raise SourceError(
            graph.source, f"{len(tokens)} tokens were given", f"this network takes {needed}",
            "use the tokens of a network of the same shapes",
        )  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for slot, block in zip(parts, _blocks(tokens.values, parts), strict=True):
        matrix = block[:, : slot.columns]
        if slot.bias is not None:
            tensors[slot.bias.key] = matrix[:, -1].to(slot.bias.dtype).clone()
            matrix = matrix[:, :-1]
        moved = _moved_shape(slot.weight)
        tensor = matrix.reshape(moved).movedim(0, slot.weight.axis) if moved else matrix.reshape(())
        tensors[slot.weight.key] = tensor.to(slot.weight.dtype).contiguous().clone()
    return graph.replace(tensors)


def _blocks(rows: torch.Tensor, parts: tuple[Slot, ...]) -> Iterator[torch.Tensor]:
    """Yield each slot's tokens as a view (rows, pieces * D)."""
    counts = [s.tokens(rows.shape[1]) for s in parts]
    for slot, block in zip(parts, rows.split(counts), strict=True):
        yield block.view(slot.rows, -1)


def _matrix(graph: WeightGraph, slot: Slot, like: torch.Tensor) -> list[torch.Tensor]:
    """Return the slot's weight, and its bias where it has one, as matrices of its rows."""
    weight = _to(graph.tensors[slot.weight.key], like)
    if weight.ndim > 1:
        weight = weight.movedim(slot.weight.axis, 0)
    parts = [weight.reshape(slot.rows, -1)]
    if slot.bias is not None:
        parts.append(_to(graph.tensors[slot.bias.key], like).reshape(slot.rows, -1))
    return parts


def _fill(block: torch.Tensor, parts: list[torch.Tensor]) -> None:
    start = 0
    for part in parts:
        block[:, start : start + part.shape[1]] = part
        start += part.shape[1]


def _to(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Move a tensor to the tokens' device and type, without waiting where CUDA allows it."""
    if like.is_cuda and not tensor.is_cuda:
        tensor = tensor.contiguous().pin_memory()
    return tensor.detach().to(like.device, non_blocking=like.is_cuda).to(like.dtype)


def _moved_shape(param: Param) -> tuple[int, ...]:
    """Return the tensor's shape with its output axis first."""
    if not param.shape:
        return ()
    axis = param.axis % len(param.shape)
    return (param.shape[axis], *param.shape[:axis], *param.shape[axis + 1 :])
