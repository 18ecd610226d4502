"""Floating-point weights that the network rounds before it computes with them, as if they were integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.operators.attributes import integer
from sane_onnx.operators.quantized_operators import QuantizedInput
from sane_onnx.quantization.carried import Carried
from sane_onnx.quantization.find_spreads import SpreadFinder
from sane_onnx.quantization.quantized import Dequantization, misfit
from sane_onnx.tensors import FLOATS, StoredTensor, torch_dtype
from sane_plugins.errors import SourceError

_NARROW = {torch.int8: 8, torch.uint8: 8, torch.int16: 16, torch.uint16: 16}


@dataclass(frozen=True)
class RoundedWeight:
    """A stored tensor behind QuantizeLinear and DequantizeLinear of the same scales: read as rounded.

    `node` is the first of the two, `kind` the integers that it makes.
    """

    stored: StoredTensor
    rounding: Dequantization
    node: NodeProto
    kind: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the values."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which the network computes."""
        return self.rounding.dtype

    @property
    def description(self) -> str:
        """Say what becomes of the stored values."""
        return (
            f"rounded as the network does, to multiples in {str(self.kind).removeprefix('torch.')}"
        )

    @property
    def settings(self) -> tuple[str, ...]:
        """Return the keys of the constants that scales and zero points come from."""
        return tuple(name for spread in self.rounding.spreads for name in spread.names)

    def require(self) -> None:
        """Raise `SourceError` where values and scales do not fit each other."""
        self.stored.require()
        try:
            self._rounded(torch.zeros(()).expand(self.shape))
        except (RuntimeError, IndexError, ValueError) as error:
            raise misfit(self.stored) from error

    def read(self) -> torch.Tensor:
        """Return the values that the network computes with."""
        return self._rounded(self.stored.read().float()).to(self.dtype)

    def write(self, value: torch.Tensor) -> None:
        """Store values; raises `SourceError` where the network would not round them to within half a step."""
        step = self.rounding.grids(self.shape)[0].abs()
        error = (self._rounded(value.float()) - value.float()).abs()
        if bool((error > 0.51 * step).any()):
            raise SourceError(
                self.stored.place,
                "the new values lie beyond what its scales can hold",
                f"{str(self.kind).removeprefix('torch.')} with these scales is needed",
                "keep the values near the old ones, or write a file in floating point",
            )
        self.stored.write(value)

    def _rounded(self, value: torch.Tensor) -> torch.Tensor:
        scale, zero = self.rounding.grids(self.shape)
        range_ = torch.iinfo(self.kind)
        codes = (torch.round(value / scale) + zero).clamp(range_.min, range_.max)
        return (codes - zero) * scale


def find_rounded(
    nodes: Sequence[NodeProto], constants: Mapping[str, Constant]
) -> dict[str, RoundedWeight]:
    """Return the weights that are only read by QuantizeLinear, and then only by DequantizeLinear."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    spreads = SpreadFinder(nodes, constants)
    found: dict[str, RoundedWeight] = {}
    for node in nodes:
        key = node.input[0] if len(node.input) > 1 else ""
        stored = constants.get(key)
        if not isinstance(stored, StoredTensor) or not _is_rounding(node, readers):
            continue
        is_plain = stored.dtype in FLOATS.values() and stored.size > 1
        if not is_plain or len(readers[key]) > 1 or stored.dtype is None:
            continue
        axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
        rule = QuantizedInput(scales=(1,), zero=2, axis=axis, block=block)
        rounding = spreads.dequantization(node, rule, Carried(key, stored.dtype, stored.shape))
        kind = _kind(node, constants)
        if rounding is not None and kind is not None:
            found[key] = RoundedWeight(stored, rounding.simplified(), node, kind)
    return found


def _is_rounding(node: NodeProto, readers: Mapping[str, Sequence[NodeProto]]) -> bool:
    """Return whether every reader of a QuantizeLinear dequantises with its scales and zero points."""
    domains = (*STANDARD, MICROSOFT)
    if node.op_type != "QuantizeLinear" or node.domain not in domains or len(node.output) != 1:
        return False
    after = readers.get(node.output[0], ())
    return bool(after) and all(
        x.op_type == "DequantizeLinear"
        and x.domain in domains
        and [*x.input[1:3]] == [*node.input[1:3]]
        and integer(x, "axis", 1) == integer(node, "axis", 1)
        and integer(x, "block_size", 0) == integer(node, "block_size", 0)
        for x in after
    )


def _kind(node: NodeProto, constants: Mapping[str, Constant]) -> torch.dtype | None:
    """Return the type of the integers; None for types that are not rounded to here."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    kind = torch.uint8 if zero is None else zero.dtype
    if zero is None and integer(node, "output_dtype", 0):
        kind = torch_dtype(integer(node, "output_dtype", 0))
    is_whole = not isinstance(zero, StoredTensor) or zero.bits == _NARROW.get(
        zero.dtype or torch.bool
    )
    return kind if kind in _NARROW and is_whole else None
