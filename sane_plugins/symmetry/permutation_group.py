"""Permutation groups: channels that may be permuted together, and their slices in each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AxisSlice:
    """The channels of a group in one tensor: entries offset..offset+length of one axis of tensor `key`.

    Each channel fills `repeat` consecutive entries; length = channels * repeat.
    """

    key: str
    axis: int
    offset: int
    length: int
    repeat: int

    def index(self, perm: torch.Tensor, size: int) -> torch.Tensor:
        """Return the index (size,) that permutes the channels of this axis, of `size` entries."""
        entries = perm[:, None] * self.repeat + torch.arange(self.repeat)
        index = torch.arange(size)
        index[self.offset : self.offset + self.length] = entries.flatten() + self.offset
        return index

    def channels(self, tensor: torch.Tensor, count: int) -> torch.Tensor:
        """Return what each of `count` channels owns of a tensor: (C, repeat, ...), a view where it can be."""
        entries = tensor.movedim(self.axis, 0)[self.offset : self.offset + self.length]
        return entries.reshape(count, self.repeat, *entries.shape[1:])


@dataclass(frozen=True)
class PermutationGroup:
    """Channels that may be permuted together, each within one of `blocks` equal blocks."""

    name: str
    size: int
    blocks: int = 1
    slices: tuple[AxisSlice, ...] = ()
