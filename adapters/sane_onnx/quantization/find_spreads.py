"""Find the numbers by which a node scales or shifts stored integers, and how they lie over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.operators.quantized_operators import QuantizedInput
from sane_onnx.quantization.bit_packing import Packing
from sane_onnx.quantization.carried import Carried
from sane_onnx.quantization.folding import Folder
from sane_onnx.quantization.moves import Move
from sane_onnx.quantization.quantized import Dequantization
from sane_onnx.quantization.spread import Spread

_MAX_CASTS = 8
_BITS_OF_GROUPS = 4
# In these a difference of two bytes fits.
SIGNED = (torch.int16, torch.int32, torch.int64)


class SpreadFinder:
    """Finds scales and zero points among a model's constants, stored and computed ones."""

    def __init__(self, nodes: Sequence[NodeProto], constants: Mapping[str, Constant]) -> None:
        self.folder = Folder(nodes, constants)
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def dequantization(
        self, node: NodeProto, rule: QuantizedInput, carried: Carried
    ) -> Dequantization | None:
        """Return how a node dequantises integers by a rule; None where its scales are no known constants."""

        def operand(index: int) -> str:
            return node.input[index] if 0 <= index < len(node.input) else ""

        names = [operand(index) for index in rule.scales]
        if rule.is_scaled_later:
            names = [self._scale_after(node.output[0])] if node.output else [""]
        packing = _packing(rule, carried)
        shape = packing.shape if packing is not None else carried.shape
        if rule.bits and packing is None:
            return None
        scale, zero = self._spread(rule, names, carried, shape), None
        if name := operand(rule.zero):
            zero = self._spread(rule, [name], carried, shape, rule.bits)
        if scale is None or (name and zero is None):
            return None
        if name := operand(rule.groups):
            groups = self.folder.find(name)
            # onnxruntime leaves packed zero points out with groups, and other bits go wrong.
            if groups is None or rule.bits != _BITS_OF_GROUPS or (zero and zero.packing):
                return None
            scale = replace(scale, groups=groups, names=(*scale.names, name))
            zero = zero and replace(zero, groups=groups)
        dtype = scale.factors[-1].dtype
        is_float = dtype is not None and dtype.is_floating_point and dtype.itemsize > 1
        return Dequantization(
            scale, zero, dtype if is_float and dtype else torch.float32, rule.default_zero, packing
        )

    def operand(self, name: str, carried: Carried) -> Spread | None:
        """Return how the operand of an elementwise operator lies over stored numbers, if it is constant."""
        numbers = self.folder.find(name)
        if numbers is None or numbers.dtype is None:
            return None
        if not numbers.dtype.is_floating_point and numbers.dtype not in SIGNED:
            return None
        moves, rank = carried.moves, len(carried.shape)
        spread = Spread(factors=(numbers,), names=self.folder.roots(name), moves=moves)
        if spread.count == 1:
            return spread if len(numbers.shape) <= rank else None
        shape = (*(1,) * (rank - len(numbers.shape)), *numbers.shape)
        is_inside = len(shape) == rank and all(
            a in (1, b) for a, b in zip(shape, carried.shape, strict=True)
        )
        if moves is None or not is_inside:
            return None
        return replace(spread, operand=shape)

    def is_scaled_next(self, value: str) -> bool:
        """Return whether the only use of a value, after casts and moves, is to be scaled by a constant."""
        for _ in range(_MAX_CASTS):
            readers = self._readers.get(value, [])
            if len(readers) != 1 or not readers[0].output:
                return False
            (node,) = readers
            if node.op_type in ("Mul", "Div"):
                return any(self.folder.find(name) is not None for name in node.input)
            if node.op_type not in ("Cast", "Reshape", "Transpose", "Identity", "Gather"):
                return False
            value = node.output[0]
        return False

    def _scale_after(self, value: str) -> str:
        """Return the constant that the product of ConvInteger or MatMulInteger is scaled by, after casts."""
        for _ in range(_MAX_CASTS):
            readers = [x for x in self._readers.get(value, ()) if x.op_type in ("Cast", "Mul")]
            if not readers or not readers[0].output:
                return ""
            node = readers[0]
            if node.op_type == "Mul":
                other = next((x for x in node.input if x != value), "")
                producer = self._producers.get(other)
                factors = [other]
                if producer is not None and producer.op_type == "Mul":
                    factors += producer.input
                return next((x for x in factors if self.folder.find(x) is not None), "")
            value = node.output[0]
        return ""

    def _spread(
        self,
        rule: QuantizedInput,
        names: Sequence[str],
        carried: Carried,
        shape: tuple[int, ...],
        bits: int = 0,
    ) -> Spread | None:
        """Return how numbers of these names lie over the stored values; None where that is not known."""
        found = [self.folder.find(name) for name in names]
        factors = tuple(x for x in found if x is not None)
        if len(factors) < len(found) or not factors:
            return None
        moves, last = carried.moves, factors[-1]
        roots = tuple(root for name in names for root in self.folder.roots(name))
        spread = Spread(factors=factors, names=roots, moves=moves)
        if bits and last.dtype == torch.uint8:
            spread = replace(spread, packing=Packing(bits, _block_counts(rule, shape)))
        if spread.count == 1:
            return spread
        if moves is None:
            return None
        axis = rule.axis if -len(shape) <= rule.axis < len(shape) else 0
        axis %= max(len(shape), 1)
        if rule.is_leading:
            counts = spread.packing.shape if spread.packing else last.shape
            return replace(spread, operand=_leading(counts, shape, axis))
        if rule.codes:  # blocks go on from row to row
            flat = Move(shape, (prod(shape),), (None,), lambda x: x.reshape(shape))
            return replace(spread, axis=0, block=rule.block, moves=(flat,))
        if rule.block > 0:
            return replace(spread, axis=axis, block=rule.block)
        is_grid = len(last.shape) == len(shape) and any(
            n > 1 for i, n in enumerate(last.shape) if i != axis
        )
        return replace(spread, operand=tuple(last.shape)) if is_grid else replace(spread, axis=axis)


def _packing(rule: QuantizedInput, carried: Carried) -> Packing | None:
    """Return how the stored bytes are packed; None where they are not, or were moved."""
    is_byte = carried.dtype in (torch.uint8, torch.int8)
    if not rule.bits or not is_byte or carried.moves is None or carried.moves or not carried.shape:
        return None
    shape = rule.size or (*carried.shape[:-1], carried.shape[-1] * 8 // rule.bits)
    packing = Packing(rule.bits, shape, rule.codes, bool(rule.codes))
    if rule.size and not rule.codes and not _has_whole_blocks(rule, prod(carried.shape)):
        return None
    return packing if packing.fits(prod(carried.shape)) else None


def _has_whole_blocks(rule: QuantizedInput, nbytes: int) -> bool:
    """Return whether rows are padded to whole blocks, and blocks are whole bytes."""
    rows, columns = rule.size
    if rule.block < 1 or rule.block * rule.bits % 8:
        return False
    return nbytes == rows * -(-columns // rule.block) * (rule.block * rule.bits // 8)


def _block_counts(rule: QuantizedInput, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of zero points: one for each block along the axis, or for each row."""
    if rule.is_leading or rule.block <= 0:
        return shape[:-1]
    axis = rule.axis % len(shape)
    return (*shape[:axis], -(-shape[axis] // rule.block), *shape[axis + 1 :])


def _leading(counts: Sequence[int], shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the shape as an operand of numbers along the first axis and `axis`."""
    sizes = [counts[0], *(1,) * (len(shape) - 1)]
    if len(counts) > 1:
        sizes[axis] = counts[1]
    return tuple(sizes)
