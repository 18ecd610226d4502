"""Statistics of one tensor: moments, zeros, and all-zero channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt

import torch

from sane_plugins.weights import MAX_VALUE, Kind, Layer, Param, Role, widened

# Values converted to float64 at a time, so that memory does not grow with the tensor.
_CHUNK_SIZE = 1 << 20
_MATRIX_KINDS: frozenset[Kind] = frozenset(
    ("conv", "transposed_conv", "linear", "attention", "unknown", "recurrent")
)
_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class ChannelStats:
    """Numbers of output and input channels of weight matrices, and of all-zero ones."""

    outputs: int = 0
    zero_outputs: int = 0
    inputs: int = 0
    zero_inputs: int = 0

    def __add__(self, other: ChannelStats) -> ChannelStats:
        return ChannelStats(
            outputs=self.outputs + other.outputs,
            zero_outputs=self.zero_outputs + other.zero_outputs,
            inputs=self.inputs + other.inputs,
            zero_inputs=self.zero_inputs + other.zero_inputs,
        )


@dataclass(frozen=True, kw_only=True)
class TensorStats:
    """Statistics of one tensor. Moments are those of its finite values.

    `zeros` is the number of values equal to 0, `nonfinite` the number that are NaN, infinite, or above half
    of what float32 holds.
    """

    key: str
    role: Role
    shape: tuple[int, ...]
    dtype: str
    size: int
    mean: float
    deviation: float
    zeros: int
    nonfinite: int
    converted: str = ""
    channels: ChannelStats = field(default_factory=ChannelStats)

    @property
    def power(self) -> float:
        """Return the mean square."""
        return self.mean**2 + self.deviation**2

    @property
    def rms(self) -> float:
        """Return the root mean square."""
        return sqrt(self.power)

    @property
    def scale(self) -> tuple[float, float]:
        """Return the mean and deviation used to standardise tokens; the deviation is 1 if constant."""
        return self.mean, self.deviation if self.deviation > _EPSILON else 1.0


def measure_tensor(
    tensor: torch.Tensor, param: Param, layer: Layer, converted: str = ""
) -> TensorStats:
    """Compute the statistics of a layer's tensor in chunks; one without values has no channels either."""
    if not param.size:
        return _stats(param, converted, _Moments(), 0, ChannelStats())
    has_channels = len(param.shape) > 1 and param.role != "bias" and layer.kind in _MATRIX_KINDS
    tensor = tensor.detach()
    moved = tensor.movedim(param.axis, 0) if tensor.ndim > 1 else tensor.reshape(-1)
    moments, zeros = _Moments(), 0
    channels = _ChannelCount(param, layer, moved) if has_channels else None
    for block in _blocks(moved):
        block_zeros = block.numel() - int(block.count_nonzero())
        zeros += block_zeros
        for piece in block.reshape(-1).split(_CHUNK_SIZE):
            moments.add(piece)
        if channels:
            channels.add(block, block_zeros > 0)
    return _stats(
        param, converted, moments, zeros, channels.stats() if channels else ChannelStats()
    )


def _stats(
    param: Param, converted: str, moments: _Moments, zeros: int, channels: ChannelStats
) -> TensorStats:
    return TensorStats(
        key=param.key,
        role=param.role,
        shape=param.shape,
        size=param.size,
        dtype=str(param.dtype).removeprefix("torch."),
        converted=converted,
        zeros=zeros,
        mean=moments.mean,
        deviation=sqrt(moments.spread / max(moments.count, 1)),
        nonfinite=param.size - moments.count,
        channels=channels,
    )


class _Moments:
    """Running mean and sum of squared deviations, updated stably by chunks (Chan et al.)."""

    def __init__(self) -> None:
        self.count, self.mean, self.spread = 0, 0.0, 0.0

    def add(self, piece: torch.Tensor) -> None:
        values = piece.double()
        low, high = torch.aminmax(values)
        if not bool((low >= -MAX_VALUE) & (high <= MAX_VALUE)):
            values = values[values.abs() <= MAX_VALUE]
        if not (count := values.numel()):
            return
        variance, mean = torch.var_mean(values, correction=0)
        total, step = self.count + count, mean.item() - self.mean
        self.spread += variance.item() * count + step**2 * self.count * count / total
        self.mean += step * count / total
        self.count = total


def _blocks(moved: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensor in blocks of whole rows, with 1-byte dtypes converted to float32."""
    row = moved[0].numel() if len(moved) else 1
    for block in moved.split(max(1, _CHUNK_SIZE // max(row, 1))):
        yield widened(block)


def _nonzero_channels(block: torch.Tensor) -> torch.Tensor:
    """Return a mask (rows, columns), on the CPU, of kernels with any non-zero value."""
    nonzero = block != 0
    return (nonzero.flatten(2).any(2) if nonzero.ndim > 2 else nonzero).cpu()


class _ChannelCount:
    """Counts all and all-zero channels, block by block of rows (each an output).

    A grouped convolution's axis lists the channels of one group after the other: its mask is kept.
    """

    def __init__(self, param: Param, layer: Layer, moved: torch.Tensor) -> None:
        # The tensor itself has its inputs first, as a transposed convolution.
        self._is_moved = param.axis != 0
        self._counts_inputs = layer.kind != "recurrent"  # its axes are directions and inputs
        self._rows, columns = moved.shape[:2]
        listed = columns if self._is_moved else self._rows
        self._groups = layer.groups if listed % layer.groups == 0 else 1
        self._zero_rows, self._columns = 0, torch.zeros(columns, dtype=torch.bool)
        self._kernels: list[torch.Tensor] = []

    def add(self, block: torch.Tensor, has_zeros: bool) -> None:
        """Count the channels of some rows."""
        if self._groups > 1:
            ones = torch.ones(block.shape[:2], dtype=torch.bool)
            self._kernels.append(_nonzero_channels(block) if has_zeros else ones)
        elif not has_zeros:
            self._columns.fill_(True)
        else:
            kernels = _nonzero_channels(block)
            self._zero_rows += int((~kernels.any(1)).sum())
            self._columns |= kernels.any(0)

    def stats(self) -> ChannelStats:
        """Return the counts of all blocks."""
        if self._groups > 1:
            return self._grouped()
        return self._result(
            self._rows, self._zero_rows, len(self._columns), int((~self._columns).sum())
        )

    def _grouped(self) -> ChannelStats:
        kernels = torch.cat(self._kernels)
        side = kernels.T if self._is_moved else kernels
        along = side.any(1)
        across = side.reshape(self._groups, -1, side.shape[1]).any(1)
        outputs, inputs = (across, along) if self._is_moved else (along, across)
        return self._result(
            outputs.numel(), int((~outputs).sum()), inputs.numel(), int((~inputs).sum())
        )

    def _result(self, outputs: int, zero_outputs: int, inputs: int, zero_in: int) -> ChannelStats:
        return ChannelStats(
            outputs=outputs,
            zero_outputs=zero_outputs,
            inputs=inputs * self._counts_inputs,
            zero_inputs=zero_in * self._counts_inputs,
        )
