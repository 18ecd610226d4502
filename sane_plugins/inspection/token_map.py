"""Evenly sampled, standardised tokens (R, D) of a network, for display as an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sane_plugins.weights import Slot, WeightGraph, cut_rows


@dataclass(frozen=True)
class TokenMap:
    """Sampled tokens: values (R, D), mask (R, D) of real values, index `place` (R,) of each in the network.

    `spans` has the name and half-open row range of each sampled layer; `total` is the number of tokens of
    the whole network.
    """

    values: torch.Tensor
    mask: torch.Tensor
    place: torch.Tensor
    spans: tuple[tuple[str, int, int], ...]
    total: int


def token_map(
    graph: WeightGraph, scale: Mapping[str, tuple[float, float]], width: int, most: int = 2000
) -> TokenMap:
    """Sample at most `most` tokens evenly and standardise each tensor by `scale` (mean, deviation).

    Reads one tensor at a time. If `most` is at least the number of tokens, the values equal those of
    `tokenize(apply_scale(graph, fit_scale(graph)))`.
    """
    layout = graph.token_layout(width)
    total = len(layout)
    rows = min(most, total)
    place = torch.arange(rows) * total // rows
    values = torch.zeros(rows, width)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    spans: list[tuple[str, int, int]] = []
    drawn = 0
    stops = torch.tensor([stop for _, stop in layout.spans])
    ends = torch.searchsorted(place, stops).tolist()  # of the sampled tokens of each slot
    for slot, (start, _), last in zip(layout.slots, layout.spans, ends, strict=True):
        if last > drawn:
            slot_tokens = place[drawn:last] - start
            values[drawn:last], mask[drawn:last] = _tokens(graph, slot, slot_tokens, scale, width)
            is_same = bool(spans) and spans[-1][0] == slot.layer
            first = spans.pop()[1] if is_same else drawn
            spans.append((slot.layer, first, last))
        drawn = last
    return TokenMap(values, mask, place, tuple(spans), total)


def _tokens(
    graph: WeightGraph,
    slot: Slot,
    slot_tokens: torch.Tensor,
    scale: Mapping[str, tuple[float, float]],
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and mask (R, D) of the given tokens of a slot, building only the rows they lie in."""
    filled = slot.row_mask(width)
    pieces = len(filled)
    rows, inverse = (slot_tokens // pieces).unique(return_inverse=True)
    tensors = (slot.row_view(p, graph.tensors[p.key].detach()) for p in slot.params)
    block = torch.empty(len(rows), pieces * width)
    cut_rows(
        block,
        slot,
        (tensor[rows.to(tensor.device)].cpu().double() for tensor in tensors),
        scale=[scale[p.key] for p in slot.params],
    )
    return block.view(-1, pieces, width)[inverse, slot_tokens % pieces], filled[
        slot_tokens % pieces
    ]
