"""Standardise images per channel, and say by which mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sane_plugins.errors import TaskError


def standardize(
    name: str, images: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], tuple[float, ...], tuple[float, ...]]:
    """Return images (N, C, H, W) standardised per channel by the first of them, its mean and deviation (C).

    A constant channel becomes 0; its deviation counts as 1. `images` are the training images, and others.
    """
    x_train = images[0]
    mean = x_train.mean((0, 2, 3), keepdim=True)
    deviation = x_train.std((0, 2, 3), keepdim=True, correction=0)
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
