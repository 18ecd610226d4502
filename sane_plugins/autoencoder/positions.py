"""Where a token sits, as numbers for any length: no table caps a network's size.

All that is needed follows from the shapes, so any range of tokens is described without reading a value.
The method: docs/explanation/sane.md, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sane_plugins.weights import Slot

_PERIODS = 16
_OCTAVES = 7
WIDTH = 4 * 2 * _PERIODS + 4 * 2 * _OCTAVES + 5


@dataclass(frozen=True)
class TokenLayout:
    """How the M slots of a network lie in its tokens: each (M,) int64, `last` the filled share (M,) of the
    last piece of a channel."""

    first: torch.Tensor
    channels: torch.Tensor
    pieces: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(
        cls, parts: Sequence[Slot], width: int, device: torch.device | str = "cpu"
    ) -> TokenLayout:
        """Return the layout of slots cut into tokens of `width` values."""
        rows = [(s.tokens(width), s.rows, s.columns) for s in parts]
        sizes, channels, columns = torch.tensor(rows, device=device).unbind(1)
        pieces = sizes // channels
        last = (columns - (pieces - 1) * width).double() / width
        return cls(sizes.cumsum(0) - sizes, channels, pieces, last)

    def __len__(self) -> int:
        return int(self.first[-1] + self.channels[-1] * self.pieces[-1])

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Return the half-open range of tokens of each slot."""
        ends = self.first + self.channels * self.pieces
        return list(zip(self.first.tolist(), ends.tolist(), strict=True))

    def slots(self, start: int, stop: int) -> torch.Tensor:
        """Return the slot number of each token of a range."""
        n = torch.arange(start, stop, device=self.first.device)
        return torch.searchsorted(self.first, n, right=True) - 1

    def positions(self, start: int, stop: int) -> torch.Tensor:
        """Return place in the sequence, slot and channel of a range of tokens, (stop - start, 3)."""
        n = torch.arange(start, stop, device=self.first.device)
        slot = self.slots(start, stop)
        return torch.stack([n, slot, (n - self.first[slot]) // self.pieces[slot]], 1)

    def features(self, start: int, stop: int) -> torch.Tensor:
        """Return Fourier features of the places of a range of tokens, (stop - start, WIDTH).

        Four coordinates (sequence, slot, channel, piece of the channel) enter absolute, as sines with periods
        from 2 to 100,000 tokens, and relative to the network, slot or channel, as sines of 1 to 64
        half-turns. Sizes and the filled share of the token complete them.
        """
        n = torch.arange(start, stop, device=self.first.device)
        slot = self.slots(start, stop)
        pieces, channels = self.pieces[slot], self.channels[slot]
        within = n - self.first[slot]
        channel = within // pieces
        piece = within - channel * pieces
        sizes = [
            torch.full_like(n, len(self)),
            torch.full_like(n, len(self.first)),
            channels,
            pieces,
        ]
        filled = torch.where(piece == pieces - 1, self.last[slot], 1.0)
        return _features(torch.stack([n, slot, channel, piece], 1), torch.stack(sizes, 1), filled)


def _features(at: torch.Tensor, sizes: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """Return (T, WIDTH) of coordinates (T, 4), the sizes (T, 4) they are relative to, and shares (T,)."""
    period = torch.logspace(math.log10(2), 5, _PERIODS, dtype=torch.float64, device=at.device)
    halves = 0.5 * 2.0 ** torch.arange(_OCTAVES, dtype=torch.float64, device=at.device)
    place, size = at.double(), sizes.double()
    parts = [_waves(place, 1 / period), _waves(place / size, halves)]
    return torch.cat([*parts, (size.log() / 4).float(), filled.float()[:, None]], 1)


def _waves(x: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines (T, 4 * 2n) of places (T, 4) at frequencies (n,).

    What is left of a turn is small, so that its sine is exact to single precision in single precision,
    which is many times faster.
    """
    turns = x[..., None] * frequency
    angle = turns.sub_(turns.round()).float().mul_(2 * math.pi)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
