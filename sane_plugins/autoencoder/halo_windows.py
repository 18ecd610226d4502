"""Halo windows: (T, ...) -> (K, S, ...) and back, for any length (docs/explanation/sane.md, section 5.1).

K windows own W tokens each and see up to H tokens of context on either side; S = min(W + 2H, T).
"""

from __future__ import annotations

from math import ceil

import torch


def cut_windows(sequence: torch.Tensor, window: int, halo: int) -> torch.Tensor:
    """Cut (T, ...) into windows (K, S, ...) that together own every token once."""
    return sequence[visible_tokens(len(sequence), window, halo).to(sequence.device)]


def join_windows(windows: torch.Tensor, tokens: int, window: int, halo: int) -> torch.Tensor:
    """Join the owned tokens of windows (K, S, ...) to (T, ...); the inverse of `cut_windows`."""
    owner = torch.arange(tokens) // window
    start = visible_tokens(tokens, window, halo)[:, 0]
    return windows[owner, torch.arange(tokens) - start[owner]]


def count_windows(tokens: int, window: int) -> int:
    """Return the number of windows (K) that own T tokens."""
    return ceil(tokens / window)


def visible_tokens(
    tokens: int, window: int, halo: int, first: int = 0, last: int | None = None
) -> torch.Tensor:
    """Return the token indices (K, S) seen by windows `first` to `last`, by default all."""
    span = min(window + 2 * halo, tokens)
    last = count_windows(tokens, window) if last is None else last
    start = torch.arange(first, last) * window - halo
    start = start.clamp(0, tokens - span)  # first, last and short sequences need no special case
    return start[:, None] + torch.arange(span)


def owned_tokens(tokens: int, window: int, first: int, last: int) -> torch.Tensor:
    """Return the token indices (K, W) owned by windows `first` to `last`.

    The last window of a sequence may own fewer; its row is padded with the last token.
    """
    indices = torch.arange(first, last)[:, None] * window + torch.arange(min(window, tokens))
    return indices.clamp(max=tokens - 1)
