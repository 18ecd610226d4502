"""A network's tokens as an image that fits a page: evenly chosen, standardised (R rows, D)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sane_plugins.weights import Slot, WeightGraph, cut_rows


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
    `tokenize(apply_scale(graph, fit_scale(graph)))`.
    """
    layout = graph.token_layout(width)
    total = len(layout)
    rows = min(most, total)
    place = torch.arange(rows) * total // rows
    values = torch.zeros(rows, width)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    spans: list[tuple[str, int, int]] = []
    first = 0
    for slot, (start, stop) in zip(layout.slots, layout.spans, strict=True):
        own = place[(place >= start) & (place < stop)] - start
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
    filled = slot.row_mask(width)
    pieces = len(filled)
    rows, back = (own // pieces).unique(return_inverse=True)
    tensors = (slot.row_view(p, graph.tensors[p.key].detach()) for p in slot.params)
    block = torch.empty(len(rows), pieces * width)
    cut_rows(
        block,
        slot,
        (tensor[rows.to(tensor.device)].cpu().double() for tensor in tensors),
        scale=[scale[p.key] for p in slot.params],
    )
    return block.view(-1, pieces, width)[back, own % pieces], filled[own % pieces]
