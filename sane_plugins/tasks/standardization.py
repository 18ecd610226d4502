"""Standardise images per channel, and say by which mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sane_plugins.errors import TaskError

_AT_ONCE = 256  # images, as their sums are taken in double precision


def standardize(
    name: str, images: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], tuple[float, ...], tuple[float, ...]]:
    """Return images (N, C, H, W) standardised per channel by the first of them, its mean and deviation (C).

    A constant channel becomes 0; its deviation counts as 1. `images` are the training images, and others.
    """
    x_train = images[0]
    mean, deviation = _moments(x_train)
    high, low = x_train.amax((0, 2, 3), True), x_train.amin((0, 2, 3), True)
    mean = torch.where(high == low, high, mean)  # a computed one is not exact
    largest = torch.maximum(high, -low)
    deviation[deviation <= 1e-6 * largest.clamp_max(1.0)] = 1.0
    standardized = [(x - mean).div_(deviation) for x in images]
    # An infinite deviation would make finite images of 0.
    if not all(bool(x.isfinite().all()) for x in (mean, deviation, *standardized)):
        raise TaskError(
            name,
            "its pixels are so large, or so small, that their mean or deviation overflows",
            "images are computed with in single precision",
            "divide them by a number, such as their maximum",
        )
    return standardized, tuple(mean.flatten().tolist()), tuple(deviation.flatten().tolist())


def _moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation (1, C, 1, 1) per channel, the same on any device and number of threads.

    Torch sums in as many parts as there are threads, so the last bits of its sums, by which a file of initial
    weights knows its images again, are others on another machine.
    """
    parts = [part.cpu().numpy() for part in images.split(_AT_ONCE)]
    count = images[:, 0].numel()
    mean = sum(part.sum((0, 2, 3), np.float64) for part in parts) / count
    centered = (part - mean[:, None, None] for part in parts)
    deviation = np.sqrt(sum(np.square(part).sum((0, 2, 3)) for part in centered) / count)
    both = torch.from_numpy(np.stack((mean, deviation))).to(images)
    return both[0].view(1, -1, 1, 1), both[1].view(1, -1, 1, 1)
