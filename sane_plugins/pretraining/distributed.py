"""Data-parallel training: each process handles its rows of a batch, and gradients are summed.

Every process draws the same full batch from the same seeds, so only projections and gradients are
exchanged, and the sums equal those of a single process up to rounding.
The method: docs/explanation/sane.md, section 4.6.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class World:
    """Rank of this process, and number of processes that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Return the world of the active process group, or a world of one process."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Return whether this process is the one that writes files."""
        return self.rank == 0

    def rows(self, batch: int) -> torch.Tensor:
        """Return this process's row indices of a batch; `batch` must be divisible by the world size."""
        share = batch // self.size
        return torch.arange(self.rank * share, (self.rank + 1) * share)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather the rows of all processes in rank order; gradients flow to this process's rows."""
        if self.size == 1:
            return rows
        gathered: torch.Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def sum_over_processes(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the process group if started by `torchrun`, and yield this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    is_cuda = device.startswith("cuda")
    if is_cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield device
        distributed.barrier()  # keep connections open until every process is done
    finally:
        distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All-gather in the forward pass; own rows in the backward pass.

    Each process computes the same loss over all rows and weights it by 1/size, so the gradient of its own
    rows must be multiplied by size.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world = world
        parts = [torch.empty_like(rows) for _ in range(world.size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        world: World = ctx.world
        return gradients[0].chunk(world.size)[world.rank] * world.size, None
