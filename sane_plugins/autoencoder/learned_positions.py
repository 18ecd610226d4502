"""Learned place tables as published: they cap a network's size; computed places do not.

The method: docs/explanation/sane.md, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LearnedPositions(nn.Module):
    """[e1(n) + e2(l)] || e3(k) of half the width each, for places (..., 3) int64 below `sizes`."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.token, self.slot, self.channel = (nn.Embedding(n, width // 2) for n in sizes)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Return (..., width)."""
        token, slot, channel = places.unbind(-1)
        return torch.cat([self.token(token) + self.slot(slot), self.channel(channel)], -1)
