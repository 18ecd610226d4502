"""Batch-norm conditioning: running statistics that fit the target images.

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
    """Measure the running statistics anew on random batches of images (N, C, H, W).

    Only batch-norm layers that track statistics run in training mode, so that dropout stays off; their
    statistics become the plain mean over all batches. Modes and momenta are as before afterwards. Does
    nothing for a network without such layers.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    with _measuring(module, norms):
        for batch in _batches(len(images), batches, batch_size, rng):
            module(images[batch])


@contextmanager
def conditioned(
    module: nn.Module, images: torch.Tensor, batches: int, batch_size: int
) -> Iterator[None]:
    """Let running statistics fit images (N, C, H, W) for a while; always measured on the same batches."""
    buffers = [b for m in module.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    condition(module, images, batches, batch_size, torch.Generator().manual_seed(0))
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


@contextmanager
def _measuring(module: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
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
        for part, mode in modes.items():
            part.training = mode


def _batches(
    images: int, batches: int, batch_size: int, rng: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield indices of whole batches, as often through all images as needed."""
    size = min(batch_size, images)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(batches):
        if len(order) < size:
            order = torch.randperm(images, generator=rng)
        yield order[:size]
        order = order[size:]
