"""Data-parallel training: each process takes its rows of a batch, and gradients are summed.

Every process draws the same whole batch from the same seeds, so nothing but projections and gradients is
exchanged, and the sums are those of one process up to rounding.
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
    """Rank of this process, and number of those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Return that of `process_group`, or this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Tell whether this process is the one that writes."""
        return self.rank == 0

    def rows(self, batch: int) -> torch.Tensor:
        """Return the rows of a batch that this process takes; the size of the group divides `batch`."""
        share = batch // self.size
        return torch.arange(self.rank * share, (self.rank + 1) * share)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes in order; gradients reach this process's own."""
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
    """Join the processes that `torchrun` started, if it did, and yield the device that is this one's."""
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
        distributed.barrier()  # none takes its connections down while another still needs them
    finally:
        distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All rows forwards; backwards the own ones.

    Each process computes the same loss of all rows and counts 1/size of it: its own rows' gradient is that
    many times what it sees.
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
