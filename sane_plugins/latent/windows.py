"""Halo windows: (T, ...) -> (K, S, ...) and back, for any length (spec section 5).

K windows own W tokens each and see up to H tokens of context on either side; S = min(W + 2H, T).
"""

from __future__ import annotations

from math import ceil

import torch


def cut(sequence: torch.Tensor, window: int, halo: int) -> torch.Tensor:
    """Cut (T, ...) into windows (K, S, ...) that together own every token once."""
    return sequence[_places(len(sequence), window, halo).to(sequence.device)]


def join(windows: torch.Tensor, tokens: int, window: int, halo: int) -> torch.Tensor:
    """Take back from (K, S, ...) what each window owns: (T, ...); the inverse of `cut`."""
    owner = torch.arange(tokens) // window
    start = _places(tokens, window, halo)[:, 0]
    return windows[owner, torch.arange(tokens) - start[owner]]


def _places(tokens: int, window: int, halo: int) -> torch.Tensor:
    """Return the token that each window sees at each place, (K, S)."""
    span = min(window + 2 * halo, tokens)
    first = torch.arange(ceil(tokens / window)) * window - halo
    start = first.clamp(0, tokens - span)  # first, last and short sequences need no special case
    return start[:, None] + torch.arange(span)
