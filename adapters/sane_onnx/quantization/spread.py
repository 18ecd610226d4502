"""Scales and zero points, and how they lie over a tensor: one for all, per channel, per block, per group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

from sane_onnx.constants import Constant
from sane_onnx.quantization.bit_packing import Packing
from sane_onnx.quantization.moves import Move
from sane_onnx.tensors import StoredTensor


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Numbers over a tensor: the product of `factors`, whose names are `names`.

    They lie along `axis`, one per channel or per `block` values, or in the shape `operand`, as operands of
    elementwise operators do. `groups` gives the block of each index. `packing` is that of integers.
    `moves` lead from the stored tensor to the one that the numbers lie over; None: a single number, anywhere.
    """

    factors: tuple[Constant, ...]
    names: tuple[str, ...]
    axis: int = 0
    block: int = 0
    groups: Constant | None = None
    packing: Packing | None = None
    operand: tuple[int, ...] | None = None
    is_inverse: bool = False
    is_negative: bool = False
    moves: tuple[Move, ...] | None = ()

    @property
    def count(self) -> int:
        """Return how many numbers are stored."""
        return self.packing.size if self.packing else prod(self.factors[-1].shape)

    @property
    def is_along_axis(self) -> bool:
        """Return whether there is one number for each index of an axis."""
        is_other = self.block or self.groups or self.operand is not None
        return not is_other and self.count > 1

    @property
    def is_plain(self) -> bool:
        """Return whether the numbers are stored one by one for each index of `axis` of the stored tensor."""
        is_other = self.moves or self.packing or self.is_inverse or self.is_negative
        is_stored = len(self.factors) == 1 and isinstance(self.factors[0], StoredTensor)
        return self.is_along_axis and is_stored and not is_other

    def simplified(self) -> Spread:
        """Return the same numbers without steps that make no difference where they all are used."""
        if self.count == 1:
            return replace(self, moves=())
        varying = [i for i, n in enumerate(self.operand or ()) if n > 1]
        is_axis = self.is_along_axis or (len(varying) == 1 and self.groups is None)
        axis = varying[0] if varying else self.axis
        place = stored_axis(axis, self.moves or ()) if is_axis and self.packing is None else None
        return self if place is None else replace(self, axis=place, operand=None, moves=())

    def numbers(self) -> torch.Tensor:
        """Return the numbers as stored."""
        numbers = self.factors[0].read()
        numbers = self.packing.unpack(numbers) if self.packing else numbers
        numbers = numbers.float()
        for other in self.factors[1:]:
            numbers = numbers.reshape(-1) * other.read().float().reshape(-1)
        numbers = numbers.reciprocal() if self.is_inverse else numbers
        return -numbers if self.is_negative else numbers

    def over(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the numbers in a shape that broadcasts to that of the stored tensor.

        Raises `RuntimeError` or `IndexError` where they do not fit it.
        """
        numbers, moves = self.numbers(), self.moves or ()
        if numbers.numel() == 1:
            if not moves:
                return numbers.reshape(())
            numbers = numbers.reshape(())
        grid = (
            numbers
            if not numbers.ndim
            else self._over(numbers, moves[-1].after if moves else shape)
        )
        for move in reversed(moves):
            grid = move.back(grid.expand(move.after))
        return grid

    def _over(self, numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if self.operand is not None:
            return numbers.reshape(self.operand).expand(shape)
        length = shape[self.axis]
        if self.groups is not None:
            index = self.groups.read().long().reshape(-1)[:length]
            rows = self._blocks(numbers, shape, int(index.max()) + 1)
            return rows.index_select(self.axis, index)
        if self.block:
            blocks = self._blocks(numbers, shape, -(-length // self.block))
            wide = blocks.repeat_interleave(min(self.block, length), self.axis)
            return wide.narrow(self.axis, 0, length)
        return numbers.reshape([length if i == self.axis else 1 for i in range(len(shape))])

    def _blocks(self, numbers: torch.Tensor, shape: tuple[int, ...], count: int) -> torch.Tensor:
        """Return one number for each of `count` blocks along the axis."""
        before, after = shape[: self.axis], shape[self.axis + 1 :]
        if numbers.ndim < len(shape):
            numbers = numbers.reshape(*before, -1, *after)
        return numbers.narrow(self.axis, 0, count).expand(*before, count, *after)


def stored_axis(axis: int, moves: tuple[Move, ...]) -> int | None:
    """Return the axis of the stored tensor that became an axis after these steps, if it is still one."""
    place: int | None = axis
    for move in reversed(moves):
        place = None if place is None else move.axes[place]
    return place
