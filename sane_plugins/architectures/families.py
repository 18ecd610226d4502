"""Architectures of our zoos, built from plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sane_plugins.architectures.building_blocks import ACTIVATIONS as ACTIVATIONS
from sane_plugins.architectures.building_blocks import AttentionBlock, PatchTokens, Residual
from sane_plugins.errors import ZooError

IMAGE_SIZE = {1: 28, 3: 32}
_WIDTHS = {1: (8, 6, 4), 3: (16, 16, 16)}


def small_cnn(
    channels_in: int = 1, classes: int = 10, act: str = "relu", dropout: float = 0.0
) -> nn.Sequential:
    """Build the small CNN of the published zoos, for (N, 1, 28, 28) or (N, 3, 32, 32) images.

    Any other number of channels uses the three-channel variant. Parameters: 2,464 and 14,022 at ten
    classes (Schürholt et al., "Model Zoos", NeurIPS 2022, table 1).
    """
    return _cnn(channels_in, classes, act, dropout, _WIDTHS.get(channels_in, _WIDTHS[3]))


def wide_cnn(
    channels_in: int = 1,
    classes: int = 10,
    act: str = "relu",
    dropout: float = 0.0,
    factor: int = 2,
) -> nn.Sequential:
    """Build the small CNN with `factor` times its channels, for the same images."""
    widths = _WIDTHS.get(channels_in, _WIDTHS[3])
    return _cnn(channels_in, classes, act, dropout, tuple(factor * width for width in widths))


def mlp(
    channels_in: int = 1,
    classes: int = 10,
    act: str = "relu",
    dropout: float = 0.0,
    size: int = 28,
    width: int = 16,
    depth: int = 2,
) -> nn.Sequential:
    """Build `depth` hidden layers of `width` units, for (N, C, size, size) images."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = channels_in * size * size
    for _ in range(depth):
        layers += [nn.Linear(features, width), ACTIVATIONS[act](), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def resnet(
    channels_in: int = 3,
    classes: int = 10,
    act: str = "relu",
    dropout: float = 0.0,
    depth: int = 20,
    width: int = 16,
    shortcut: str = "pad",
    norm: str = "batch",
) -> nn.Module:
    """Build a ResNet of the CIFAR family (He et al. 2016, section 4.2) for images of any size.

    `depth` is 6n + 2: 8, 14, 20, 32, 56. `shortcut` is "pad" (option A) or "conv" (option B). `norm` is
    "batch" or "none", with biases instead. Parameter names are those of
    github.com/akamaster/pytorch_resnet_cifar10.
    """
    if norm not in ("batch", "none"):
        raise ZooError("resnet", f"its norm is '{norm}'", "batch or none is needed", "try batch")
    if depth < 8 or (depth - 2) % 6:
        raise ZooError("resnet", f"its depth is {depth}", "6n + 2 is needed", "try 8, 14 or 20")
    return Residual(channels_in, classes, act, dropout, (depth - 2) // 6, width, shortcut, norm)


def vit(
    channels_in: int = 1,
    classes: int = 10,
    act: str = "gelu",
    dropout: float = 0.0,
    size: int = 28,
    patch: int = 7,
    width: int = 24,
    depth: int = 2,
    heads: int = 3,
) -> nn.Sequential:
    """Build a small ViT with class token and learned positions (Dosovitskiy et al. 2021, section 3.1)."""
    if size % patch or width % heads:
        raise ZooError(
            "vit",
            f"size {size} and patch {patch}, width {width} and heads {heads} do not fit",
            "each first is a multiple of its second",
            "choose others",
        )
    return nn.Sequential(
        nn.Conv2d(channels_in, width, patch, stride=patch),
        PatchTokens((size // patch) ** 2, width),
        *(AttentionBlock(width, heads, act, dropout) for _ in range(depth)),
        _ClassToken(),
        nn.LayerNorm(width),
        nn.Linear(width, classes),
    )


class _ClassToken(nn.Module):
    """Selects the class token, which comes last."""

    def forward(self, tokens: Any) -> Any:
        """Map tokens (..., T, D) to (..., D)."""
        return tokens[..., -1, :]


def small_cnn_size(channels_in: int) -> int:
    """Return the image size in pixels that `small_cnn` takes."""
    return IMAGE_SIZE.get(channels_in, IMAGE_SIZE[3])


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "wide_cnn": wide_cnn,
    "mlp": mlp,
    "resnet": resnet,
    "vit": vit,
}
FIXED_SIZE = ("small_cnn", "wide_cnn")  # take images of `small_cnn_size` only
TAKES_SIZE = ("mlp", "vit")  # have the argument `size`


def _cnn(
    channels_in: int, classes: int, act: str, dropout: float, widths: tuple[int, ...]
) -> nn.Sequential:
    a, b, c = widths
    side = 3 if channels_in == 1 else 4

    def activation() -> nn.Module:
        return ACTIVATIONS[act]()

    return nn.Sequential(
        nn.Conv2d(channels_in, a, 5),
        nn.MaxPool2d(2),
        activation(),
        nn.Dropout(dropout),
        nn.Conv2d(a, b, 5),
        nn.MaxPool2d(2),
        activation(),
        nn.Dropout(dropout),
        nn.Conv2d(b, c, 2),
        activation(),
        nn.Flatten(),
        nn.Linear(c * side * side, 20),
        activation(),
        nn.Dropout(dropout),
        nn.Linear(20, classes),
    )
