"""Which image size does a network take? Told by dry runs, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from inspect import signature

import torch
from torch import nn

from sane_plugins.architectures.dry_run import first_shape, run_on_meta
from sane_plugins.weights import evaluation_copy

SIZE_ARGUMENTS = ("image_size", "img_size")  # of builders and classes, by which a size is told
Size2D = tuple[int, int]
_BATCH = 2
# What networks are built for: multiples of patches and strides, and the usual sizes of data sets.
_TRIED = (
    *(8, 16, 24, 28, 32, 40, 48, 56, 64, 72, 75, 80, 96, 112, 128, 144, 160, 176, 192, 208),
    *(224, 240, 256, 272, 288, 299, 320, 336, 352, 384, 392, 416, 448, 480, 504, 512, 518, 576),
)
_TRIED_WITH_VALUES = (
    32,
    64,
    96,
    128,
    224,
    256,
    28,
    16,
)  # as a run of a large network takes a second


def find_image_size(module: nn.Module, channels: int, classes: int, size: Size2D) -> Size2D | None:
    """Return the image size (height, width) that a network takes, `size` itself where it takes that.

    Otherwise that is the next larger square that it takes, or else the next smaller. None where no size is
    found at which there is one output per class: then something else is wrong.
    """
    network = evaluation_copy(module)
    if _runs_on_meta(network, channels, classes, size) or _runs(network, channels, classes, size):
        return size
    for side in _by_nearness(_TRIED, size):
        if _runs_on_meta(network, channels, classes, (side, side)):
            return side, side
    for side in _by_nearness(_TRIED_WITH_VALUES, size):
        if _runs(network, channels, classes, (side, side)):
            return side, side
    return None


def takes_image_size(module: nn.Module) -> bool:
    """Return whether the class of a network is told the image size, as vision transformers are."""
    with suppress(TypeError, ValueError):
        return any(name in signature(type(module)).parameters for name in SIZE_ARGUMENTS)
    return False


def _by_nearness(tried: tuple[int, ...], size: Size2D) -> Iterator[int]:
    larger = [side for side in tried if side >= max(size)]
    yield from sorted(larger)
    yield from sorted(set(tried) - {*larger}, reverse=True)


def _runs_on_meta(module: nn.Module, channels: int, classes: int, size: Size2D) -> bool:
    return run_on_meta(module, channels, size).output[1:] == (classes,)


def _runs(module: nn.Module, channels: int, classes: int, size: Size2D) -> bool:
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    images = torch.zeros(_BATCH, channels, *size, device=device)
    with suppress(Exception), torch.no_grad():  # any code runs in a forward
        return first_shape(module(images)) == (_BATCH, classes)
    return False
