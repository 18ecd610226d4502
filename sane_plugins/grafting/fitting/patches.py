"""What a layer reads at some of its positions: patches of its input, group of channels by group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad

# Beside a layer's own output, single precision differs by its rounding.
_RELATIVE_ERROR = 1e-3
_PROBES = 64  # positions at which a layer is tried


@dataclass(frozen=True)
class Patches:
    """A layer as a product: `inputs` (S, G, F) times `weight` (G, F, O) gives its outputs without bias."""

    inputs: torch.Tensor
    weight: torch.Tensor

    def outputs(self) -> torch.Tensor:
        """Return (S, G * O), channels in the layer's order."""
        return torch.einsum("sgf,gfo->sgo", self.inputs, self.weight).flatten(1)


def grid_of(layer: nn.Conv2d | nn.Linear, output: torch.Tensor) -> tuple[int, int] | None:
    """Return (height, width) of a layer's output; None where its axes are not known to be a grid.

    Convolutions: (N, C, H, W). Linear layers: (N, C) is one position, (N, H, W, C) a grid.
    """
    if isinstance(layer, nn.Conv2d) and output.ndim == 4:
        return output.shape[2], output.shape[3]
    if isinstance(layer, nn.Linear) and output.ndim == 2:
        return 1, 1
    if isinstance(layer, nn.Linear) and output.ndim == 4:
        return output.shape[1], output.shape[2]
    return None


def at_positions(
    maps: torch.Tensor, positions: torch.Tensor, *, is_channels_last: bool
) -> torch.Tensor:
    """Return maps (N, C, H, W) or (N, ..., C) as (S, C), at positions (S,) over images, rows and columns."""
    if not is_channels_last:
        maps = maps.movedim(1, -1)
    return maps.reshape(-1, maps.shape[-1])[positions]


def read_patches(
    layer: nn.Conv2d | nn.Linear, x: torch.Tensor, positions: torch.Tensor
) -> Patches | None:
    """Return what a convolution or linear layer reads of its input x at positions (S,) of its output.

    None where its output is no product of its input and its weight: a subclass of another forward pass,
    computed weights. That is tried on the first two images.
    """
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return None  # computed from others, which a fit would have to be
    probe = layer.forward(x[:2])
    grid = grid_of(layer, probe)
    if grid is None or (padded := _padded(layer, x, grid)) is None:
        return None
    count = len(x[:2]) * grid[0] * grid[1]
    few = torch.arange(0, count, max(1, count // _PROBES), device=x.device)
    expected = at_positions(probe, few, is_channels_last=isinstance(layer, nn.Linear))
    computed = _patches(layer, padded, grid, few).outputs()
    if layer.bias is not None:
        computed = computed + layer.bias
    error = (computed - expected).abs().max()
    if not bool((error <= _RELATIVE_ERROR * expected.square().mean().sqrt()).item()):
        return None
    return _patches(layer, padded, grid, positions)


@torch.no_grad()
def write_weight(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor) -> None:
    """Give a layer the weight (G, F, O)."""
    layer.weight.copy_(weight.transpose(1, 2).reshape(layer.weight.shape))


def _patches(
    layer: nn.Conv2d | nn.Linear, x: torch.Tensor, grid: tuple[int, int], positions: torch.Tensor
) -> Patches:
    if isinstance(layer, nn.Linear):
        return Patches(x.reshape(-1, 1, x.shape[-1])[positions], layer.weight.T[None])
    rows, columns = grid
    image, place = positions // (rows * columns), positions % (rows * columns)
    top, left = place // columns * layer.stride[0], place % columns * layer.stride[1]
    channels_last = x.permute(0, 2, 3, 1)
    taps = [
        channels_last[image, top + i * layer.dilation[0], left + j * layer.dilation[1]]
        for i in range(layer.kernel_size[0])
        for j in range(layer.kernel_size[1])
    ]
    # (S, C, taps) is the order of a weight's axes: channels, then the kernel.
    inputs = torch.stack(taps, 2).reshape(len(positions), layer.groups, -1)
    outputs = layer.out_channels // layer.groups
    return Patches(inputs, layer.weight.reshape(layer.groups, outputs, -1).transpose(1, 2))


def _padded(
    layer: nn.Conv2d | nn.Linear, x: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor | None:
    """Return x as the layer reads it; padding follows from the sizes where a convolution does not tell it.

    A layer that pads in its own forward pass is taken to put the odd pixel behind, as in TensorFlow.
    """
    if isinstance(layer, nn.Linear):
        return x
    if layer.transposed or layer.padding_mode != "zeros":
        return None
    told = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    sides: list[int] = []
    for axis in (1, 0):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        size = x.shape[2 + axis]
        if (size + 2 * told[axis] - reach) // layer.stride[axis] + 1 == grid[axis]:
            sides += [told[axis], told[axis]]
            continue
        missing = (grid[axis] - 1) * layer.stride[axis] + reach - size
        if missing < 0:
            return None
        sides += [missing // 2, missing - missing // 2]
    return pad(x, sides)
