"""Quantised weights: dequantised on reading, quantised again on writing.

value = (stored - zero point) * scale, with one scale for all, one per channel, or one per block of
values (ONNX, operator DequantizeLinear).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch

from sane_onnx.constants import Constant
from sane_onnx.tensors import FLOATS, StoredTensor, integer_range, type_name
from sane_plugins.errors import SourceError

_TOLERANCE = 1e-3


@dataclass(kw_only=True)
class QuantizedWeight:
    """Integers with scales along `axis`: one per `block` values; with block 0 one per channel or in total."""

    stored: StoredTensor
    scales: tuple[Constant, ...]
    zero_point: StoredTensor | None
    axis: int = 0
    block: int = 0
    packed: tuple[int, int, int] | None = None  # rows, columns, bits: MatMulNBits
    settings: tuple[str, ...] = ()
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.packed[:2] if self.packed else self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the scales, in which the network computes."""
        return self.scales[-1].dtype or torch.float32

    @property
    def description(self) -> str:
        """Describe the quantised type and the granularity of its scales."""
        bits = f"{self.packed[2]}-bit blocks" if self.packed else type_name(self.stored.tensor)
        count = prod(self.scales[-1].shape)
        kind = (
            "one scale" if count == 1 else "one scale per " + ("block" if self.block else "channel")
        )
        return f"dequantised from {bits}, {kind}"

    def require(self) -> None:
        """Raise `SourceError` where integers and scales do not fit each other."""
        for part in (self.stored, *self.scales, *([self.zero_point] if self.zero_point else [])):
            part.require()
        for scale in self.scales:
            if scale.dtype is None or not scale.dtype.is_floating_point:
                raise SourceError(
                    self.stored.place,
                    f"its scales are of type {str(scale.dtype).removeprefix('torch.')}",
                    "floating-point numbers are needed",
                    "export the file again",
                )
        try:
            self._broadcast(self._scale())
            if self.zero_point is not None:
                self._broadcast(self._zero_points())
        except (RuntimeError, IndexError) as error:
            raise SourceError(
                self.stored.place,
                "its scales do not fit its shape",
                "one scale for all, per channel or per block is needed",
                "export the file again",
            ) from error

    def read(self) -> torch.Tensor:
        """Return the dequantised weights."""
        values = self._integers().to(torch.float32) - self._broadcast_zero_points()
        return (values * self._broadcast(self._scale())).to(self.dtype)

    def write(self, value: torch.Tensor) -> None:
        """Quantise; a channel keeps its scale, takes that of another channel, or gets a new one if necessary.

        Raises `SourceError` where the scales must change and other values depend on them.
        """
        value = value.to(torch.float32)
        if self.stored.tensor.data_type in FLOATS or not _is_integer(self.stored):
            self.stored.write(value / self._broadcast(self._scale()))  # 8-bit floats
            return
        scale, offset = self._broadcast(self._scale()), self._broadcast_zero_points()
        bits = self.packed[2] if self.packed else 0
        low, high = (0, 2**bits - 1) if bits else integer_range(self.stored.tensor)
        integers = torch.round(value / scale + offset)
        error = ((integers - offset) * scale - value).abs() > _TOLERANCE * scale
        if error.any() and self._rescale_channels(value, low, high):
            return
        if ((integers < low) | (integers > high)).any():
            raise SourceError(
                self.stored.place,
                "the new values lie beyond what its scales can hold",
                f"{type_name(self.stored.tensor)} with these scales is needed",
                "keep the values near the old ones, or write a file in floating point",
            )
        self._write_integers(integers)

    def holds(self, value: torch.Tensor) -> bool:
        """Return whether the stored values equal these up to the rounding of their type."""
        step = self._broadcast(self._scale()).abs()
        # Integers round by half a step; 8-bit floats have at least two binary places.
        float_error = 0.0 if _is_integer(self.stored) else 0.13 * value.float().abs()
        error = (self.read().float() - value.float()).abs()
        return bool((error <= 0.51 * step + float_error + 1e-6 * value.float().abs()).all())

    def _rescale_channels(self, value: torch.Tensor, low: int, high: int) -> bool:
        """Write permuted or changed channels, each with the scale and zero point that fit it best.

        A channel that none fits gets a new scale. Returns False, and writes nothing, where there is not
        one scale per channel.
        """
        scale = self.scales[-1].read().float().reshape(-1)
        if len(self.scales) > 1 or self.block or len(scale) == 1:
            return False
        rows = value.movedim(self.axis, 0).reshape(len(scale), -1)
        zeros = self._zero_points().float().reshape(-1).expand(len(scale)).clone()
        parameters: list[tuple[float, float]] = []
        for i, row in enumerate(rows):
            errors = _rounding_errors(row, scale, zeros, low, high)
            best = int(errors.argmin())
            best = i if errors[i] <= errors[best] else best
            if errors[best] < 1:
                parameters.append((float(scale[best]), float(zeros[best])))
            else:
                zero = float(zeros[i])
                new_scale = float(row.abs().max()) / max(min(high - zero, zero - low), 1)
                parameters.append((new_scale or float(scale[i]), zero))
        shape = [-1 if i == self.axis % value.ndim else 1 for i in range(value.ndim)]
        scales, zero_points = torch.tensor(parameters).T
        integers = torch.round(value / scales.reshape(shape) + zero_points.reshape(shape))
        self.scales[-1].write(scales.reshape(self.scales[-1].shape))
        if self.zero_point is not None and prod(self.zero_point.shape) > 1:
            self.zero_point.write(zero_points.reshape(self.zero_point.shape))
        self._write_integers(integers.clamp(low, high))
        return True

    def _write_integers(self, integers: torch.Tensor) -> None:
        if self.packed is None:
            self.stored.write(integers)
            return
        rows, columns, bits = self.packed
        values_per_byte, count = 8 // bits, prod(self.stored.shape) // rows * 8 // bits
        padded = torch.zeros(rows, count, dtype=torch.uint8)
        padded[:, :columns] = integers.to(torch.uint8)
        parts = padded.reshape(rows, -1, values_per_byte)
        packed = sum(
            (parts[..., i] << bits * i for i in range(values_per_byte)),
            torch.zeros_like(parts[..., 0]),
        )
        self.stored.write(packed.reshape(self.stored.shape))

    def _integers(self) -> torch.Tensor:
        stored = self.stored.read()
        if self.packed is None:
            return stored
        rows, columns, bits = self.packed
        return _unpack(stored, bits).reshape(rows, -1)[:, :columns]

    def _scale(self) -> torch.Tensor:
        scale = self.scales[0].read().float()
        for other in self.scales[1:]:
            scale = scale.reshape(-1) * other.read().float().reshape(-1)
        return scale

    def _zero_points(self) -> torch.Tensor:
        if self.zero_point is None:
            return torch.tensor(float(2 ** (self.packed[2] - 1)) if self.packed else 0.0)
        zeros = self.zero_point.read()
        if self.packed and not zeros.is_floating_point():
            rows, columns, bits = self.packed
            return _unpack(zeros, bits).reshape(rows, -1)[:, : -(-columns // self.block)].float()
        return zeros.float()

    def _broadcast_zero_points(self) -> torch.Tensor:
        return self._broadcast(self._zero_points())

    def _broadcast(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return scales or zero points in a shape that broadcasts to the values."""
        if numbers.numel() == 1:
            return numbers.reshape(())
        if self.packed:
            numbers = numbers.reshape(self.packed[0], -1)
        if self.block:
            length = self.shape[self.axis]  # a block may claim to be of any size
            rest = [*self.shape[: self.axis], -1, *self.shape[self.axis + 1 :]]
            blocks = numbers.narrow(self.axis, 0, -(-length // self.block)).expand(rest)
            wide = blocks.repeat_interleave(min(self.block, length), self.axis)
            return wide.narrow(self.axis, 0, length)
        shape = [1] * len(self.shape)
        shape[self.axis] = self.shape[self.axis]
        return numbers.reshape(shape)


def _unpack(stored: torch.Tensor, bits: int) -> torch.Tensor:
    parts = [(stored >> bits * i) & (2**bits - 1) for i in range(8 // bits)]
    return torch.stack(parts, dim=-1)


def _is_integer(stored: StoredTensor) -> bool:
    return stored.dtype is not None and not stored.dtype.is_floating_point


def _rounding_errors(
    row: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor, low: int, high: int
) -> torch.Tensor:
    """Return for each scale how far a row is from multiples of it; below 1 is rounding error only.

    The smallest error decides: a bias is a single number, which many scales fit approximately.
    """
    worst = torch.zeros(len(scale))
    for part in row.split(64):
        candidates = (worst < 1).nonzero().reshape(-1)
        ratio = part[None] / scale[candidates, None] + zeros[candidates, None]
        error = (ratio - ratio.round()).abs() / (_TOLERANCE + 1e-6 * ratio.abs())
        error[(ratio < low - 0.5) | (ratio > high + 0.5)] = torch.inf
        worst[candidates] = torch.maximum(worst[candidates], error.amax(1))
    return worst
