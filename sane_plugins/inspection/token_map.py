"""A network's tokens as an image that fits a page: evenly chosen, standardised (R rows, D)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch

from sane_plugins.weights import Param, Slot, WeightGraph, slots


@dataclass(frozen=True)
class TokenMap:
    """Chosen tokens: values (R, D), mask (R, D) true where a value is real, place (R,) of each among all.

    `spans` gives for each layer that has any its name, first row and row past the last; `total` counts
    the tokens of the whole network.
    """

    values: torch.Tensor
    mask: torch.Tensor
    place: torch.Tensor
    spans: tuple[tuple[str, int, int], ...]
    total: int


def token_map(
    graph: WeightGraph, scale: Mapping[str, tuple[float, float]], width: int, most: int = 2000
) -> TokenMap:
    """Choose at most `most` tokens evenly and standardise each tensor by `scale` (mean, deviation).

    Reads one tensor at a time. With `most` at least the number of tokens, these are the values of
    `tokenize(apply(graph, fit(graph)))`.
    """
    parts = slots(graph)
    total = sum(slot.tokens(width) for slot in parts)
    rows = min(most, total)
    place = torch.arange(rows) * total // rows
    values = torch.zeros(rows, width)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    spans: list[tuple[str, int, int]] = []
    start = first = 0
    for slot in parts:
        own = place[(place >= start) & (place < start + slot.tokens(width))] - start
        start += slot.tokens(width)
        last = first + len(own)
        if len(own):
            values[first:last], mask[first:last] = _tokens(graph, slot, own, scale, width)
            if spans and spans[-1][0] == slot.layer:
                first = spans.pop()[1]
            spans.append((slot.layer, first, last))
        first = last
    return TokenMap(values, mask, place, tuple(spans), total)


def _tokens(
    graph: WeightGraph,
    slot: Slot,
    own: torch.Tensor,
    scale: Mapping[str, tuple[float, float]],
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and mask (R, D) of a slot's own tokens, making only the rows they lie in."""
    pieces = ceil(slot.columns / width)
    rows, back = (own // pieces).unique(return_inverse=True)
    parts = [_rows(graph, slot.weight, slot, rows, scale)]
    if slot.bias is not None:
        parts.append(_rows(graph, slot.bias, slot, rows, scale))
    block = torch.zeros(len(rows), pieces * width)
    block[:, : slot.columns] = torch.cat(parts, dim=1)
    filled = (torch.arange(pieces * width) < slot.columns).view(pieces, width)
    return block.view(-1, pieces, width)[back, own % pieces], filled[own % pieces]


def _rows(
    graph: WeightGraph,
    param: Param,
    slot: Slot,
    rows: torch.Tensor,
    scale: Mapping[str, tuple[float, float]],
) -> torch.Tensor:
    tensor = graph.tensors[param.key].detach()
    moved = tensor.movedim(param.axis, 0) if tensor.ndim > 1 else tensor
    chosen = moved[rows.to(moved.device)] if slot.rows > 1 else moved
    mean, deviation = scale[param.key]
    return (chosen.reshape(len(rows), -1).cpu().double() - mean).div(deviation).float()
