"""Losses of the autoencoder: masked reconstruction and contrastive loss between views.

The method: docs/explanation/sane.md, section 4.4.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, normalize


def masked_mse(
    predicted: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean squared error over real values, ignoring padding.

    `count` is the number of real values in the whole batch, if this is only a part of it.
    """
    total = mask.sum() if count is None else count
    return ((predicted - target) ** 2 * mask).sum() / total


def masked_variance(target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the variance of the real values of a batch.

    Masked loss normalisation standardises target and prediction with the mean and deviation of the batch's
    real target values: the mean cancels in the squared error, which is thus divided by this variance.
    """
    count = mask.sum()
    mean = (target * mask).sum() / count
    return ((target - mean) ** 2 * mask).sum() / count


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the NT-Xent loss of two views (B, Z), for any B (Chen et al. 2020, eq. 1)."""
    both = normalize(torch.cat([first, second]).float(), dim=1)
    similarity = (both @ both.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return cross_entropy(similarity, partner)
