"""Statistics of one tensor: moments, zeros, and all-zero channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt

import torch

from sane_plugins.weights import Kind, Layer, Param, Role

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

    `zeros` is the number of values equal to 0, `nonfinite` the number that are NaN or infinite.
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
    """Compute the statistics of a layer's tensor in chunks."""
    has_channels = len(param.shape) > 1 and param.role != "bias" and layer.kind in _MATRIX_KINDS
    tensor = tensor.detach()
    moved = tensor.movedim(param.axis, 0) if tensor.ndim > 1 else tensor.reshape(-1)
    moments, zeros, nonzero = _Moments(), 0, []
    for block in _blocks(moved):
        block_zeros = block.numel() - int(block.count_nonzero())
        zeros += block_zeros
        for piece in block.reshape(-1).split(_CHUNK_SIZE):
            moments.add(piece)
        if has_channels:
            nonzero.append(
                _nonzero_channels(block)
                if block_zeros
                else torch.ones(block.shape[:2], dtype=torch.bool)
            )
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
        channels=_channels(torch.cat(nonzero), param, layer) if nonzero else ChannelStats(),
    )


class _Moments:
    """Running mean and sum of squared deviations, updated stably by chunks (Chan et al.)."""

    def __init__(self) -> None:
        self.count, self.mean, self.spread = 0, 0.0, 0.0

    def add(self, piece: torch.Tensor) -> None:
        values = piece.double()
        if not bool(values.sum().isfinite()):
            values = values[values.isfinite()]
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
        yield block.float() if block.dtype.itemsize == 1 else block


def _nonzero_channels(block: torch.Tensor) -> torch.Tensor:
    """Return a mask (rows, columns), on the CPU, of kernels with any non-zero value."""
    nonzero = block != 0
    return (nonzero.flatten(2).any(2) if nonzero.ndim > 2 else nonzero).cpu()


def _channels(nonzero: torch.Tensor, param: Param, layer: Layer) -> ChannelStats:
    """Count all and all-zero channels from a mask of non-zero kernels.

    The grouped axis of a convolution lists the channels of one group after the other.
    """
    is_moved = (
        param.axis != 0
    )  # the tensor itself has its inputs first, as a transposed convolution
    side = nonzero.T if is_moved else nonzero
    groups = layer.groups if len(side) % layer.groups == 0 else 1
    along = side.any(1)
    across = side.reshape(groups, -1, side.shape[1]).any(1)
    outputs, inputs = (across, along) if is_moved else (along, across)
    counts_inputs = layer.kind != "recurrent"  # its axes are directions and inputs
    return ChannelStats(
        outputs=outputs.numel(),
        zero_outputs=int((~outputs).sum()),
        inputs=inputs.numel() * counts_inputs,
        zero_inputs=int((~inputs).sum()) * counts_inputs,
    )
