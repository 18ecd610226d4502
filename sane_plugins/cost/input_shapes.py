"""Which input does a network take? Told by its first layer, and tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sane_plugins.architectures import image_count
from sane_plugins.cost.network_cost import CostOptions

_USUAL_SIZE = 224
# Tried where a network does not take images of the usual size: the next larger sizes, then smaller ones.
_SIZES = (_USUAL_SIZE, *(240, 256, 288, 299, 320, 336, 384, 448, 512, 518))
_SMALL_SIZES = (*(192, 160, 128, 112, 96, 75, 64, 56, 48, 40, 32, 28, 24, 16, 8),)
_VIDEO_FRAMES = 16
_CHANNELS: tuple[int, ...] = (3, 1)  # of images, where no layer tells
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """One input without its batch, its type, and how many of them a forward takes."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    count: int = 1
    notes: tuple[str, ...] = ()

    def of_batch(self, batch: int) -> list[torch.Tensor]:
        """Return such inputs on the meta device."""
        return [
            torch.empty((batch, *self.shape), dtype=self.dtype, device="meta")
            for _ in range(self.count)
        ]


def shapes_to_try(module: nn.Module, options: CostOptions) -> Iterator[InputShape]:
    """Yield inputs that a network may take, the likeliest first; none where no layer tells."""
    first, dtype, count = _first_layer(module), input_dtype(module), image_count(module)
    if options.shape is not None:
        yield InputShape(shape=options.shape, dtype=dtype, count=count)
        return
    if isinstance(first, nn.Embedding | nn.RNNBase):
        return
    if isinstance(first, nn.Linear) and options.size is None:
        yield InputShape(shape=(first.in_features,), dtype=dtype, count=count)
    axes, channels = 2, _CHANNELS
    if isinstance(first, _CONVOLUTIONS):
        axes, channels = first.weight.ndim - 2, (first.in_channels,)
    sizes = (*_SIZES, *_SMALL_SIZES) if options.size is None else (options.size,)
    for size in sizes:
        frames = (_VIDEO_FRAMES,) if axes == 3 else ()
        shape = (*frames, *[size] * min(axes, 2))
        usual = options.size is not None or size == _USUAL_SIZE
        notes = () if usual else (f"it takes no input of size {_USUAL_SIZE}; counted at {size}",)
        for number in channels:
            yield InputShape(shape=(number, *shape), dtype=dtype, count=count, notes=notes)


def input_dtype(module: nn.Module) -> torch.dtype:
    """Return the type of a network's input: that of its first weight, or whole numbers for a table's rows."""
    if isinstance(_first_layer(module), nn.Embedding):
        return torch.int64
    found = (x.dtype for x in module.parameters() if x.is_floating_point())
    return next(found, torch.float32)


def _first_layer(module: nn.Module) -> nn.Module | None:
    """Return the first layer that may read the input."""
    kinds = (*_CONVOLUTIONS, nn.Linear, nn.Embedding, nn.RNNBase)
    return next((m for m in module.modules() if isinstance(m, kinds)), None)
