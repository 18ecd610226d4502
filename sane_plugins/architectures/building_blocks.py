"""Building blocks of our residual networks and transformers.

Every forward counts axes from the end, so that it also runs with an axis of networks after the batch axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
}


class Residual(nn.Module):
    """A ResNet of three stages of `blocks` basic blocks."""

    def __init__(
        self,
        channels_in: int,
        classes: int,
        act: str,
        dropout: float,
        blocks: int,
        width: int,
        shortcut: str,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        block = _BlockForm(act, shortcut, norm)
        self.conv1, self.bn1 = block.conv_norm(channels_in, width, 3)
        self.act = ACTIVATIONS[act]()
        self.layer1 = _stage(width, width, blocks, 1, block)
        self.layer2 = _stage(width, 2 * width, blocks, 2, block)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, block)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of images (N, C, H, W)."""
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(self.dropout(self.flatten(self.pool(x))))
        return logits


@dataclass(frozen=True)
class _BlockForm:
    """What all blocks of a network have alike: activation, shortcut, and "batch" norms or "none"."""

    act: str
    shortcut: str
    norm: str

    def conv_norm(
        self, planes_in: int, planes: int, kernel: int, stride: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        """Return a convolution and the norm behind it; without one it has a bias."""
        has_norm = self.norm == "batch"
        conv = nn.Conv2d(planes_in, planes, kernel, stride, kernel // 2, bias=not has_norm)
        return conv, nn.BatchNorm2d(planes) if has_norm else nn.Identity()


class _BasicBlock(nn.Module):
    def __init__(self, planes_in: int, planes: int, stride: int, form: _BlockForm) -> None:
        super().__init__()
        self.conv1, self.bn1 = form.conv_norm(planes_in, planes, 3, stride)
        self.act = ACTIVATIONS[form.act]()
        self.conv2, self.bn2 = form.conv_norm(planes, planes, 3)
        self.shortcut = _shortcut(planes_in, planes, stride, form)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        result: torch.Tensor = self.act(out + self.shortcut(x))
        return result


class _ZeroPadChannels(nn.Module):
    """Pads zero channels on both sides (option A)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 0, 0, self.channels // 2, self.channels - self.channels // 2))


def _stage(
    planes_in: int, planes: int, blocks: int, stride: int, form: _BlockForm
) -> nn.Sequential:
    first = _BasicBlock(planes_in, planes, stride, form)
    return nn.Sequential(first, *(_BasicBlock(planes, planes, 1, form) for _ in range(blocks - 1)))


def _shortcut(planes_in: int, planes: int, stride: int, form: _BlockForm) -> nn.Module:
    if planes_in == planes and stride == 1:
        return nn.Identity()
    if form.shortcut == "pad":  # pooling one pixel subsamples the image
        return nn.Sequential(nn.AvgPool2d(1, stride), _ZeroPadChannels(planes - planes_in))
    return nn.Sequential(*form.conv_norm(planes_in, planes, 1, stride))


class PatchTokens(nn.Module):
    """Flattens a patch map into tokens, appends the class token, and adds the position embeddings."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(0.02 * torch.randn(1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(patches + 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map patches (..., D, height, width) to tokens (..., T, D); positions fit any grid."""
        height, width = x.shape[-2:]
        tokens = F.pad(x.flatten(-2), (0, 1)).transpose(-1, -2)
        if height * width == self.positions.shape[-2] - 1:
            return tokens + self.added()
        return tokens + _resize_positions(self.added(), height, width)

    def added(self) -> torch.Tensor:
        """Return the embeddings (T, D): positions, with the class token added in the last row."""
        padding = (0, 0, self.positions.shape[-2] - 1, 0)
        return self.positions + F.pad(self.class_token, padding)


def _resize_positions(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Interpolate embeddings (T, D) of a square grid, and one of the class token, to another grid."""
    side = isqrt(len(table) - 1)
    grid = table[:-1].T.unflatten(1, (side, side))
    resized = F.interpolate(grid[None], (height, width), mode="bicubic", align_corners=False)[0]
    return torch.cat((resized.flatten(1).T, table[-1:]))


class AttentionBlock(nn.Module):
    """A pre-norm transformer block: attention, then an MLP of two linear layers."""

    def __init__(self, width: int, heads: int, act: str, dropout: float, factor: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, factor * width),
            ACTIVATIONS[act](),
            nn.Dropout(dropout),
            nn.Linear(factor * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (..., T, D) to tokens (..., T, D)."""
        x = x + self.proj(self._attend(self.qkv(self.norm1(x))))
        result: torch.Tensor = x + self.mlp(self.norm2(x))
        return result

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = torch.chunk(qkv, 3, -1)
        mixed: torch.Tensor = F.scaled_dot_product_attention(
            self._heads(q), self._heads(k), self._heads(v)
        )
        return mixed.transpose(-2, -3).flatten(-2)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        parts: torch.Tensor = x.unflatten(-1, (self.heads, -1))
        return parts.transpose(-2, -3)
