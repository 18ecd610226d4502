"""Batch-norm conditioning: running statistics measured on the target images.

How many batches of how many images is up to the caller: for the weights of an initialisation, the defaults
are `InitializeOptions.norm_batches` and `norm_batch` in `initialize/options.py`; for the scores of networks
in training, `SCORING_NORM_BATCHES` and `SCORING_NORM_BATCH_SIZE` in `initialize/training.py`.
The method: docs/explanation/sane.md, section 6.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def condition(
    module: nn.Module, images: torch.Tensor, batches: int, batch_size: int, rng: torch.Generator
) -> None:
    """Re-estimate the running statistics on random batches of images (N, C, H, W).

    Only batch-norm layers that track statistics run in training mode, so that dropout stays off; their
    statistics become the plain mean over all batches. Modes and momenta are as before afterwards. Does
    nothing for a network without such layers.
    """
    if not has_statistics(module):
        return
    with norms_in_training_mode(module):
        for batch in _batch_indices(len(images), batches, batch_size, rng):
            module(images[batch])


@contextmanager
def conditioned(
    module: nn.Module, images: torch.Tensor, batches: int, batch_size: int
) -> Iterator[None]:
    """Re-estimate the running statistics on images (N, C, H, W) within the block; the batches are fixed."""
    buffers = [b for m in module.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    saved_values = [buffer.clone() for buffer in buffers]
    condition(module, images, batches, batch_size, torch.Generator().manual_seed(0))
    try:
        yield
    finally:
        for buffer, value in zip(buffers, saved_values, strict=True):
            buffer.copy_(value)


def has_statistics(module: nn.Module) -> bool:
    """Return whether a network has batch-norm layers that keep statistics."""
    return bool(_norms(module))


@contextmanager
def norms_in_training_mode(module: nn.Module) -> Iterator[None]:
    """Let batch-norm layers that keep statistics, and nothing else, be in training mode within the block.

    Their statistics become the plain mean over the batches that pass through then.
    """
    norms = _norms(module)
    modes = {m: m.training for m in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # torch then keeps the cumulative mean
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for child, mode in modes.items():
            child.training = mode


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _batch_indices(
    image_count: int, batches: int, batch_size: int, rng: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield the indices of whole batches, reshuffled whenever the images are used up."""
    size = min(batch_size, image_count)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(batches):
        if len(order) < size:
            order = torch.randperm(image_count, generator=rng)
        yield order[:size]
        order = order[size:]
