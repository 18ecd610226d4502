"""Three networks that no library has, unlike each other, and a small ViT at a size that photos of 32 pixels fill.

    sane-init hand_written_networks:gated_preactivation --task images.npz --size 64 -o initial.safetensors

with this folder on PYTHONPATH. They are written as people write them for a project of their own; nothing in them was
chosen to suit prompts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from sane_plugins.architectures import import_torchvision


class _Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 8, 1)
        self.expand = nn.Conv2d(channels // 8, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = F.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        gate: torch.Tensor = self.expand(squeezed).sigmoid()
        return x * gate


class _PreactivationBlock(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.gate = _Gate(channels)
        changes = stride != 1 or before != channels
        self.shortcut = nn.Conv2d(before, channels, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.silu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(inner)
        inner = self.conv2(F.silu(self.norm2(self.conv1(inner))))
        summed: torch.Tensor = kept + self.gate(inner)
        return summed


class _GatedPreactivation(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        widths = (32, 64, 128, 256)
        self.blocks = nn.ModuleList()
        before = 32
        for number, width in enumerate(widths):
            for stride in (2 if number else 1, 1):
                self.blocks.append(_PreactivationBlock(before, width, stride))
                before = width
        self.norm = nn.GroupNorm(8, before)
        self.head = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(F.silu(self.norm(x)).mean((2, 3)))
        return logits


def _conv_norm_relu(before: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class _Mixed(nn.Module):
    """Four branches side by side, concatenated: 1x1, 3x3, twice 3x3, and a pooled one."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.point = _conv_norm_relu(before, width, 1)
        self.single = nn.Sequential(
            _conv_norm_relu(before, width, 1), _conv_norm_relu(width, 2 * width, 3)
        )
        self.twice = nn.Sequential(
            _conv_norm_relu(before, width // 2, 1),
            _conv_norm_relu(width // 2, width, 3),
            _conv_norm_relu(width, width, 3),
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv_norm_relu(before, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.point(x), self.single(x), self.twice(x), self.pooled(x)], 1)


class _PlainTwoLayerHead(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in (32, 64, 128):
            for _ in range(2):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.LeakyReLU(0.1)]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(4 * before, 256)
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.pool(self.features(x)).flatten(1)
        logits: torch.Tensor = self.classifier(F.relu(self.hidden(features)))
        return logits


def gated_preactivation(classes: int = 10) -> nn.Module:
    """Return a pre-activation residual network with group norm, squeeze and excite, and SiLU."""
    return _GatedPreactivation(classes)


def branches(classes: int = 10) -> nn.Module:
    """Return a network of concatenated branches, with batch norm."""
    return nn.Sequential(
        _conv_norm_relu(3, 32, 3, 2),
        _conv_norm_relu(32, 64, 3),
        nn.MaxPool2d(2),
        _Mixed(64, 32),
        _Mixed(160, 32),
        nn.MaxPool2d(2),
        _Mixed(160, 64),
        _Mixed(320, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(320, classes),
    )


def plain_two_layer_head(classes: int = 10) -> nn.Module:
    """Return a plain convolutional network without norms, with a hidden layer before its classifier."""
    return _PlainTwoLayerHead(classes)


def vit_tiny_96(classes: int = 10) -> nn.Module:
    """Return timm's vit_tiny_patch16_224 for images of 96 pixels: 36 patches."""
    import_torchvision()  # before timm, which imports it
    from timm import create_model

    module: nn.Module = create_model("vit_tiny_patch16_224", num_classes=classes, img_size=96)
    return module
