"""Position encodings of tokens: Fourier features for any length, or the published learned tables.

Positions depend only on shapes, so any range of tokens can be encoded without reading values.
The method: docs/explanation/sane.md, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import get_args

import torch
from torch import nn

from sane_plugins.weights import Role, Slot, TokenLayout

_PERIODS = 16
_OCTAVES = 7
POSITION_WIDTH = 4 * 2 * _PERIODS + 4 * 2 * _OCTAVES + 5
_ROLES = get_args(Role)
_OF_FILE = 2 * 2 * _PERIODS  # the first columns: absolute places in the sequence and of the slot
_OF_SLOT = len(_ROLES) + 3
RELATIVE_WIDTH = POSITION_WIDTH - _OF_FILE + _OF_SLOT


def position_features(layout: TokenLayout, start: int, stop: int) -> torch.Tensor:
    """Return Fourier features of the positions of a range of tokens, (stop - start, POSITION_WIDTH).

    Four coordinates (sequence, slot, channel, piece of the channel) enter absolute, as sines with periods
    from 2 to 100,000 tokens, and relative to the network, slot or channel, as sines of 1 to 64
    half-turns. Sizes and the filled share of the token complete them.
    """
    return _position_features(layout, start, stop)[0]


def relative_features(layout: TokenLayout, start: int, stop: int) -> torch.Tensor:
    """Return features that do not say where in a file tokens lie, (stop - start, RELATIVE_WIDTH).

    They are those of `position_features` without the absolute places in the sequence and of the slot, which
    blocks of different depth do not share, and in their stead what the slot is: the role of its tensor, its
    kernel taps, inputs, and whether it has a bias.
    """
    features, slot = _position_features(layout, start, stop)
    told = torch.stack([_describe_slot(x) for x in layout.slots]).to(features.device)
    return torch.cat([features[:, _OF_FILE:], told[slot]], 1)


def _position_features(
    layout: TokenLayout, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of a range of tokens, and the slot number of each."""
    n, slot, channel = layout.positions(start, stop).unbind(1)
    pieces, channels = layout.pieces[slot], layout.channels[slot]
    piece = n - layout.first[slot] - channel * pieces
    sizes = [
        torch.full_like(n, len(layout)),
        torch.full_like(n, len(layout.first)),
        channels,
        pieces,
    ]
    last = (layout.columns - (layout.pieces - 1) * layout.width).double() / layout.width
    filled = torch.where(piece == pieces - 1, last[slot], 1.0)
    at = torch.stack([n, slot, channel, piece], 1)
    return _features(at, torch.stack(sizes, 1), filled), slot


def _describe_slot(slot: Slot) -> torch.Tensor:
    """Return the role of a slot's tensor as one of several, logarithms of taps and inputs, and its bias."""
    taps = prod(slot.weight.shape[2:])
    inputs = max(1, (slot.columns - (slot.bias is not None)) // max(1, taps))
    told = [float(slot.weight.role == role) for role in _ROLES]
    told += [math.log(max(1, taps)) / 4, math.log(inputs) / 4, float(slot.bias is not None)]
    return torch.tensor(told, dtype=torch.float32, device="cpu")


class LearnedPositions(nn.Module):
    """The published position embedding: learned tables, which cap a network's size.

    The method: docs/explanation/sane.md, section 3.4.

    [e1(n) + e2(l)] || e3(k) of half the width each, for positions (..., 3) int64 below `sizes`.
    """

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.token, self.slot, self.channel = (nn.Embedding(n, width // 2) for n in sizes)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Return (..., width)."""
        token, slot, channel = positions.unbind(-1)
        return torch.cat([self.token(token) + self.slot(slot), self.channel(channel)], -1)


def _features(at: torch.Tensor, sizes: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """Return features of coordinates (T, 4), the sizes (T, 4) they are relative to, and shares (T,)."""
    period = torch.logspace(math.log10(2), 5, _PERIODS, dtype=torch.float64, device=at.device)
    frequencies = 0.5 * 2.0 ** torch.arange(_OCTAVES, dtype=torch.float64, device=at.device)
    at, size = at.double(), sizes.double()
    parts = [_waves(at, 1 / period), _waves(at / size, frequencies)]
    return torch.cat([*parts, (size.log() / 4).float(), filled.float()[:, None]], 1)


def _waves(x: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines (T, 4 * 2n) of coordinates (T, 4) at frequencies (n,).

    Whole turns are removed in double precision, so that sines can be computed in single precision, many times
    faster and just as exact.
    """
    turns = x[..., None] * frequency
    angle = turns.sub_(turns.round()).float().mul_(2 * math.pi)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
