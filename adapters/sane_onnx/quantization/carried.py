"""What a value holds of a stored constant: where its numbers lie, of which type, and their zero point."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from onnx import NodeProto

from sane_onnx.operators.attributes import integer
from sane_onnx.quantization.moves import Move
from sane_onnx.quantization.spread import Spread
from sane_onnx.tensors import FLOATS, torch_dtype

MOST_STEPS = 32  # of one constant; and constants that one value holds
# Integers that hold every value of a narrower type.
_WIDER = {
    torch.int8: (torch.int16, torch.int32, torch.int64),
    torch.uint8: (torch.uint16, torch.int16, torch.int32, torch.int64),
    torch.int16: (torch.int32, torch.int64),
    torch.uint16: (torch.int32, torch.int64),
    torch.int32: (torch.int64,),
}


@dataclass(frozen=True)
class Carried:
    """A value that holds the numbers of the constant `root`, as they lie after `moves`.

    `moves` is None where their places are not known.
    """

    root: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    moves: tuple[Move, ...] | None = ()
    zero: Spread | None = None

    @property
    def is_float(self) -> bool:
        """Return whether the numbers were cast to a floating-point type of full range."""
        return self.dtype in FLOATS.values()

    def moved(self, steps: tuple[Move, ...]) -> Carried:
        """Return what the value holds after further steps."""
        moves = (*(self.moves or ()), *steps)
        if len(moves) > MOST_STEPS:
            return self.lost()
        return replace(self, moves=moves, shape=moves[-1].after if moves else self.shape)

    def lost(self) -> Carried:
        """Return the same numbers at unknown places."""
        return replace(self, moves=None)

    def cast(self, node: NodeProto) -> list[Carried] | None:
        """Return what the output of a Cast holds: nothing of truth values; None where numbers may change."""
        dtype = torch_dtype(integer(node, "to", 0))
        if dtype == torch.bool:
            return []
        is_exact = dtype in FLOATS.values() or dtype in (self.dtype, *_WIDER.get(self.dtype, ()))
        return [replace(self, dtype=dtype)] if is_exact and dtype is not None else None
