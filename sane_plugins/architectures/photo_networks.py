"""Compact networks for photos: a ResNet, a mobile network and a ConvNeXt of one to two million parameters.

Their down-samplings lie where those of the large models lie: a grid of a thirty-second of the image at the
end. They take images of any size from 32 pixels on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

_SQUEEZE = 4  # a squeeze-excite gate has a fourth of the block's input channels
_LAYER_SCALE = 0.1


def small_resnet(
    channels_in: int = 3,
    classes: int = 10,
    widths: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] = (2, 2, 2, 1),
) -> nn.Sequential:
    """Build a ResNet of basic blocks, with the stem and the strides of ResNet-18 (He et al. 2016, table 1).

    A stage has a number of `widths` and one of `blocks`; all but the first halve the grid.
    """
    stem = nn.Sequential(
        nn.Conv2d(channels_in, widths[0], 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    )
    stages, channels = [], widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        members = []
        for member in range(count):
            members.append(_PhotoBasicBlock(channels, width, 2 if stage and not member else 1))
            channels = width
        stages.append(nn.Sequential(*members))
    return _network(stem, *stages, features=channels, classes=classes)


def small_mobilenet(
    channels_in: int = 3,
    classes: int = 10,
    widths: Sequence[int] = (16, 24, 40, 64, 88, 144),
    blocks: Sequence[int] = (1, 2, 2, 2, 2, 2),
    features: int = 512,
) -> nn.Sequential:
    """Build a network of inverted residuals with squeeze-excite (EfficientNet, Tan and Le 2019, table 1).

    A stage has a number of `widths` and one of `blocks`; kernels, strides and expansions follow from its
    place. `features` is the width of the last convolution.
    """
    stem = _conv_norm(channels_in, 16, 3, stride=2, act=nn.SiLU)
    stages, channels = [], 16
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        expansion, kernel, stride = _MOBILE_STAGES[stage]
        members = []
        for member in range(count):
            step = 1 if member else stride
            members.append(_GatedInvertedResidual(channels, width, expansion, kernel, step))
            channels = width
        stages.append(nn.Sequential(*members))
    head = _conv_norm(channels, features, 1, act=nn.SiLU)
    return _network(stem, *stages, head, features=features, classes=classes)


def small_convnext(
    channels_in: int = 3,
    classes: int = 10,
    widths: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] = (2, 2, 4, 1),
) -> nn.Sequential:
    """Build a ConvNeXt (Liu et al. 2022, section 2): patches of 4 pixels, then stages that halve the grid.

    A stage has a number of `widths` and one of `blocks`.
    """
    stem = nn.Sequential(nn.Conv2d(channels_in, widths[0], 4, stride=4), _ChannelNorm(widths[0]))
    stages, channels = [], widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        halve = [_ChannelNorm(channels), nn.Conv2d(channels, width, 2, stride=2)] if stage else []
        stages.append(nn.Sequential(*halve, *(_ConvNextBlock(width) for _ in range(count))))
        channels = width
    return _network(stem, *stages, features=channels, classes=classes, norm=nn.LayerNorm)


PHOTO_ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "small_resnet": small_resnet,
    "small_mobilenet": small_mobilenet,
    "small_convnext": small_convnext,
}
_MOBILE_STAGES = (  # expansion, kernel, stride
    (1, 3, 1),
    (4, 3, 2),
    (4, 5, 2),
    (4, 3, 2),
    (6, 5, 1),
    (6, 5, 2),
)


def _network(
    *body: nn.Module, features: int, classes: int, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """Append the mean over the grid, the norm of its features where there is one, and the classifier."""
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    norms = [norm(features)] if norm else []
    return nn.Sequential(*body, *pool, *norms, nn.Linear(features, classes))


def _conv_norm(
    channels_in: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class _PhotoBasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2, option B)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(channels_in, channels, 3, stride, act=nn.ReLU)
        self.second = _conv_norm(channels, channels, 3)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else _conv_norm(channels_in, channels, 1, stride)
        )
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return result


class _GatedInvertedResidual(nn.Module):
    """Expand, convolve each channel, gate, project (Sandler et al. 2018, section 3.4; Hu et al. 2018)."""

    def __init__(
        self, channels_in: int, channels: int, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [_conv_norm(channels_in, hidden, 1, act=nn.SiLU)] if expansion > 1 else []
        self.block = nn.Sequential(
            *expand,
            _conv_norm(hidden, hidden, kernel, stride, groups=hidden, act=nn.SiLU),
            _SqueezeExcite(hidden, max(8, channels_in // _SQUEEZE)),
            _conv_norm(hidden, channels, 1),
        )
        self.is_residual = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.block(x) if self.is_residual else self.block(x)
        return result


class _SqueezeExcite(nn.Module):
    """Scale each channel by a number in 0..1 that follows from the means of all."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(self.act(self.reduce(means))))


class _ConvNextBlock(nn.Module):
    """A depthwise 7x7 convolution, then a perceptron of each pixel, scaled and added (figure 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), _LAYER_SCALE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        pixels = self.scale * self.project(self.act(self.expand(pixels)))
        result: torch.Tensor = x + pixels.permute(0, 3, 1, 2)
        return result


class _ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of each pixel of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)
