"""Quantised weights: dequantised on reading, quantised again on writing.

value = (stored - zero point) * scale, with one scale for all, one per channel, or one per block of
values (ONNX, operator DequantizeLinear).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from sane_onnx.quantization.bit_packing import Packing
from sane_onnx.quantization.spread import Spread
from sane_onnx.tensors import StoredTensor, integer_range, type_name
from sane_plugins.errors import SourceError

_TOLERANCE = 1e-3
_FINEST = 2.0**24  # steps that float32 tells apart


@dataclass(frozen=True)
class Dequantization:
    """How a node makes floating-point numbers of `dtype` of stored ones, which `packing` may pack.

    Without a scale they are only cast; without a zero point it is `default_zero`.
    """

    scale: Spread | None
    zero: Spread | None
    dtype: torch.dtype
    default_zero: float = 0.0
    packing: Packing | None = None

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """Return the scale and the zero point that there are."""
        return tuple(spread for spread in (self.scale, self.zero) if spread is not None)

    def simplified(self) -> Dequantization:
        """Return the same for a tensor of one use: where a single number lies does not matter then."""
        scale, zero = (x and x.simplified() for x in (self.scale, self.zero))
        return replace(self, scale=scale, zero=zero)

    def grids(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point in shapes that broadcast to that of the stored tensor."""
        scale = torch.tensor(1.0) if self.scale is None else self.scale.over(shape)
        zero = torch.tensor(self.default_zero) if self.zero is None else self.zero.over(shape)
        return scale, zero


@dataclass(kw_only=True)
class QuantizedWeight:
    """Stored integers, or floats of 8 or 4 bits, and how they are dequantised.

    Several `parts` each dequantise a part of the tensor. `shape` is that of the weights.
    """

    stored: StoredTensor
    parts: tuple[Dequantization, ...]
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.stored.shape if self._packing is None else self._packing.shape

    @property
    def _packing(self) -> Packing | None:
        return self.parts[0].packing

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which the network computes."""
        return self.parts[0].dtype

    @property
    def settings(self) -> tuple[str, ...]:
        """Return the keys of the constants that scales and zero points come from."""
        return tuple(name for part in self.parts for x in part.spreads for name in x.names)

    @property
    def description(self) -> str:
        """Describe the quantised type and the granularity of its scales."""
        kind = type_name(self.stored.tensor)
        if self._packing is not None:
            kind = f"{self._packing.bits}-bit blocks"
        scale = self.parts[0].scale
        if scale is None:
            return f"converted from {kind}, not scaled"
        if len(self.parts) > 1:
            return f"dequantised from {kind}, {len(self.parts)} parts with scales of their own"
        per = "channel" if scale.is_along_axis else "block"
        return f"dequantised from {kind}, one scale" + (f" per {per}" if scale.count > 1 else "")

    def require(self) -> None:
        """Raise `SourceError` where integers and scales do not fit each other."""
        self.stored.require()
        for spread in (x for part in self.parts for x in part.spreads):
            for constant in (*spread.factors, *((spread.groups,) if spread.groups else ())):
                constant.require()
        for scale in (x for part in self.parts if part.scale for x in part.scale.factors):
            if scale.dtype is None or not scale.dtype.is_floating_point:
                raise SourceError(
                    self.stored.place,
                    f"its scales are of type {str(scale.dtype).removeprefix('torch.')}",
                    "floating-point numbers are needed",
                    "export the file again",
                )
        try:
            for grid in (x for part in self.parts for x in part.grids(self.shape)):
                grid.expand(self.shape)
        except (RuntimeError, IndexError, ValueError) as error:
            raise misfit(self.stored) from error

    def read(self) -> torch.Tensor:
        """Return the dequantised weights."""
        scale, zero = self._grids()
        return ((self._stored_numbers() - zero) * scale).to(self.dtype)

    def write(self, value: torch.Tensor) -> None:
        """Quantise; a channel keeps its scale, takes that of another channel, or gets a new one if necessary.

        Raises `SourceError` where the scales must change and other values depend on them.
        """
        value = value.to(torch.float32)
        scale, zero = self._grids()
        if not self._is_integer:
            self.stored.write(value / scale)  # small floats
            return
        low, high = self._range
        numbers = self._round(value / scale + zero)
        error = ((self._numbers(numbers) - zero) * scale - value).abs() > _TOLERANCE * scale.abs()
        if error.any() and self._rescale_channels(value, low, high):
            return
        if ((numbers < low) | (numbers > high)).any():
            raise SourceError(
                self.stored.place,
                "the new values lie beyond what its scales can hold",
                f"{type_name(self.stored.tensor)} with these scales is needed",
                "keep the values near the old ones, or write a file in floating point",
            )
        self._write_integers(numbers)

    def holds(self, value: torch.Tensor) -> bool:
        """Return whether the stored values equal these up to the rounding of their type."""
        step = self._grids()[0].abs()
        if self._packing is not None and self._packing.codes:
            step = step * self._packing.widest_gap
        # Integers round by half a step; floats of 8 bits have at least two binary places, of 4 bits one.
        places = 2 if self.stored.bits == 8 else 1
        float_error = 0.0 if self._is_integer else 0.51 * 2.0**-places * value.float().abs()
        error = (self.read().float() - value.float()).abs()
        return bool((error <= 0.51 * step + float_error + 1e-6 * value.float().abs()).all())

    def _rescale_channels(self, value: torch.Tensor, low: int, high: int) -> bool:
        """Write permuted or changed channels, each with the scale and zero point that fit it best.

        A channel that none fits gets a new scale. Returns False, and writes nothing, where there is not
        one scale per channel.
        """
        spread, zero_point = self.parts[0].scale, self.parts[0].zero
        if len(self.parts) > 1 or self._packing or spread is None or not spread.is_plain:
            return False
        if zero_point is not None and not (zero_point.is_plain or zero_point.count == 1):
            return False
        scale = spread.numbers().reshape(-1)
        rows = value.movedim(spread.axis, 0).reshape(len(scale), -1)
        middle = torch.tensor(0.0) if zero_point is None else zero_point.numbers().reshape(-1)
        zeros = middle.expand(len(scale)).clone()
        parameters: list[tuple[float, float]] = []
        for i, row in enumerate(rows):
            errors = _rounding_errors(row, scale, zeros, low, high)
            best = int(errors.argmin())
            best = i if errors[i] <= errors[best] else best
            if errors[best] < 1:
                parameters.append((float(scale[best]), float(zeros[best])))
            else:
                zero = float(zeros[i])
                above, below = (min(max(x, 1), _FINEST) for x in (high - zero, zero - low))
                new_scale = max(float(row.max()) / above, -float(row.min()) / below)
                parameters.append((new_scale or float(scale[i]), zero))
        shape = [-1 if i == spread.axis % value.ndim else 1 for i in range(value.ndim)]
        scales, zero_points = torch.tensor(parameters).T
        integers = torch.round(value / scales.reshape(shape) + zero_points.reshape(shape))
        spread.factors[0].write(scales.reshape(spread.factors[0].shape))
        if zero_point is not None and zero_point.count > 1:
            zero_point.factors[0].write(zero_points.reshape(zero_point.factors[0].shape))
        self._write_integers(integers.clamp(low, high))
        return True

    @property
    def _is_integer(self) -> bool:
        return self.stored.dtype is not None and not self.stored.dtype.is_floating_point

    @property
    def _range(self) -> tuple[int, int]:
        """Return the smallest and the largest code."""
        packing = self._packing
        return integer_range(self.stored.tensor) if packing is None else (0, 2**packing.bits - 1)

    def _grids(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scales and zero points over the weights."""
        if len(self.parts) == 1:
            return self.parts[0].grids(self.shape)
        scale, zero = (torch.full(self.shape, torch.nan) for _ in range(2))
        for part in self.parts:
            others = [x.expand(self.shape) for x in part.grids(self.shape)]
            scale, zero = (
                torch.where(mine.isnan(), other, mine)
                for mine, other in zip((scale, zero), others, strict=True)
            )
        return scale, zero

    def _stored_numbers(self) -> torch.Tensor:
        """Return what is stored, before zero point and scale."""
        stored = self.stored.read()
        codes = stored if self._packing is None else self._packing.unpack(stored)
        return self._numbers(codes.to(torch.float32))

    def _numbers(self, codes: torch.Tensor) -> torch.Tensor:
        """Return what codes stand for."""
        return codes if self._packing is None else self._packing.decode(codes)

    def _round(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes."""
        return torch.round(numbers) if self._packing is None else self._packing.encode(numbers)

    def _write_integers(self, codes: torch.Tensor) -> None:
        packing = self._packing
        packed = codes if packing is None else packing.pack(codes, self.stored.shape)
        self.stored.write(packed)


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


def misfit(stored: StoredTensor) -> SourceError:
    """Return the error for a tensor whose scales are of another shape than it."""
    return SourceError(
        stored.place,
        "its scales do not fit its shape",
        "one scale for all, per channel or per block is needed",
        "export the file again",
    )
