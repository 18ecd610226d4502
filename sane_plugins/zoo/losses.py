"""What the autoencoder is trained for: masked reconstruction and contrast of views (spec section 4)."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, normalize


def masked_mse(predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over real values only: padding neither counts nor dilutes."""
    return ((predicted - target) ** 2 * mask).sum() / mask.sum()


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Contrast two views (B, Z) of each sample with all others, for any B (Chen et al. 2020, eq. 1)."""
    both = normalize(torch.cat([first, second]).float(), dim=1)
    similarity = (both @ both.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return cross_entropy(similarity, partner)
