"""EfficientNet-Lite (Tan and Le 2019; tensorflow/tpu, efficientnet/lite): inverted residuals without gates.

Tensors are named as in the files of the packages. As in TensorFlow, what a stride does not reach is padded at
the right and at the bottom only, and batch norm adds 0.001: with torch's own values the weights do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
from torch import nn
from torch.nn import functional as F

SIZES: Mapping[str, int] = {
    "efficientnet-lite0": 224,
    "efficientnet-lite1": 240,
    "efficientnet-lite2": 260,
}
"""Sizes of images in pixels that the networks were trained at."""
_SCALES = {  # of width and depth
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
_STAGES = (  # members, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280  # channels that no scale changes
_DROPOUT = 0.2
_EPS = 1e-3


def efficientnet_lite(name: str, classes: int = 1000) -> nn.Module:
    """Build `efficientnet-lite0`, `-lite1` or `-lite2` for images of any size."""
    return EfficientNetLite(*_SCALES[name], classes)


class EfficientNetLite(nn.Module):
    """A stem, inverted residuals, a head of one convolution, the mean over the grid, a classifier."""

    def __init__(self, width: float, depth: float, classes: int) -> None:
        super().__init__()
        self._pad = _SamePadding(3, 2)
        self._conv_stem = nn.Conv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPS)
        blocks, channels = [], _STEM
        for stage, (members, kernel, stride, expansion, planned) in enumerate(_STAGES):
            is_fixed = stage in (0, len(_STAGES) - 1)  # depth is scaled between the ends only
            for member in range(members if is_fixed else ceil(members * depth)):
                step, out = 1 if member else stride, _multiple_of_8(planned * width)
                blocks.append(_LiteBlock(channels, out, kernel, step, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, _HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_EPS)
        self._act0, self._act1 = nn.ReLU6(), nn.ReLU6()
        self._pool = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(_DROPOUT)
        self._fc = nn.Linear(_HEAD, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of images (N, 3, H, W)."""
        x = self._blocks(self._act0(self._bn0(self._conv_stem(self._pad(x)))))
        x = self._act1(self._bn1(self._conv_head(x)))
        logits: torch.Tensor = self._fc(self._dropout(self._pool(x).flatten(1)))
        return logits


class _LiteBlock(nn.Module):
    """Expand, convolve each channel, project; beside an identity where the shapes allow one."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = channels_in * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels_in, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=_EPS)
            self._act0 = nn.ReLU6()
        self._pad = _SamePadding(kernel, stride)
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, eps=_EPS)
        self._act1 = nn.ReLU6()
        self._project_conv = nn.Conv2d(hidden, channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(channels, eps=_EPS)
        self._expands = expansion > 1
        self._is_residual = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._act0(self._bn0(self._expand_conv(x))) if self._expands else x
        out = self._act1(self._bn1(self._depthwise_conv(self._pad(out))))
        out = self._bn2(self._project_conv(out))
        result: torch.Tensor = x + out if self._is_residual else out
        return result


class _SamePadding(nn.Module):
    """Pads as TensorFlow does before a convolution without padding: `ceil(size / stride)` pixels come out.

    What is missing on both sides is shared, and an odd pixel is added at the right and at the bottom.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (
            max((ceil(n / self.stride) - 1) * self.stride + self.kernel - n, 0)
            for n in x.shape[-2:]
        )
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _multiple_of_8(channels: float) -> int:
    """Round a number of channels to a multiple of 8 that is at least nine tenths of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
