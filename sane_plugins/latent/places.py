"""Where a token sits, as numbers for any length: no table caps a network's size."""

from __future__ import annotations

import math

import torch

_PERIODS = 16
_OCTAVES = 7
WIDTH = 4 * 2 * _PERIODS + 4 * 2 * _OCTAVES + 5


def place_features(positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return Fourier features (T, WIDTH) of a whole network's token places.

    positions (T, 3): sequence, slot, channel; mask (T, D). Four coordinates (sequence, slot, channel,
    piece of the channel) enter absolute, as sines with periods from 2 to 100,000 tokens, and relative
    to the network, slot or channel, as sines of 1 to 64 half-turns. Sizes and the filled share of the
    token complete them.
    """
    n, layer, channel = positions.double().unbind(1)
    size = torch.bincount(positions[:, 1])[positions[:, 1]].double()
    pieces = size / _largest(positions)
    first = n - _first(positions)
    piece = first - channel * pieces
    channels = size / pieces
    absolute = torch.stack([n, layer, channel, piece], 1)
    total = torch.stack(
        [n.new_full(n.shape, len(n)), layer.max() + layer * 0 + 1, channels, pieces], 1
    )
    filled = mask.double().mean(1, keepdim=True)
    parts = [_sines(absolute), _octaves(absolute / total), total.log() / 4, filled]
    return torch.cat(parts, 1).float()


def _largest(positions: torch.Tensor) -> torch.Tensor:
    """Return how many channels the slot of each token has."""
    slot, channel = positions[:, 1], positions[:, 2]
    most = torch.zeros(int(slot.max()) + 1, dtype=channel.dtype, device=slot.device)
    return most.scatter_reduce(0, slot, channel + 1, "amax")[slot].double()


def _first(positions: torch.Tensor) -> torch.Tensor:
    """Return the place of the first token of each token's slot."""
    counts = torch.bincount(positions[:, 1])
    return (counts.cumsum(0) - counts)[positions[:, 1]].double()


def _sines(x: torch.Tensor) -> torch.Tensor:
    period = torch.logspace(math.log10(2), 5, _PERIODS, dtype=x.dtype, device=x.device)
    angle = 2 * math.pi * x[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)


def _octaves(x: torch.Tensor) -> torch.Tensor:
    turns = math.pi * 2.0 ** torch.arange(_OCTAVES, dtype=x.dtype, device=x.device)
    angle = x[..., None] * turns
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
