"""The networks that our zoos are made of, built from a plain description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from sane_plugins.errors import ZooError

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid,
}  # fmt: skip
IMAGE_SIZE = {1: 28, 3: 32}
_WIDTHS = {1: (8, 6, 4), 3: (16, 16, 16)}


def small_cnn(
    channels_in: int = 1, classes: int = 10, act: str = "relu", dropout: float = 0.0
) -> nn.Sequential:
    """Build the small CNN of the published zoos, for (N, 1, 28, 28) or (N, 3, 32, 32) images.

    Any other number of channels takes the three-channel form. Parameters: 2,464 and 14,022 at ten
    classes (Schürholt et al., "Model Zoos", NeurIPS 2022, table 1).
    """
    a, b, c = _WIDTHS.get(channels_in, _WIDTHS[3])
    side = 3 if channels_in == 1 else 4

    def activation() -> nn.Module:
        return ACTIVATIONS[act]()

    return nn.Sequential(
        nn.Conv2d(channels_in, a, 5), nn.MaxPool2d(2), activation(), nn.Dropout(dropout),
        nn.Conv2d(a, b, 5), nn.MaxPool2d(2), activation(), nn.Dropout(dropout),
        nn.Conv2d(b, c, 2), activation(), nn.Flatten(),
        nn.Linear(c * side * side, 20), activation(), nn.Dropout(dropout), nn.Linear(20, classes),
    )  # fmt: skip


def small_cnn_size(channels_in: int) -> int:
    """Return the image size in pixels that `small_cnn` takes."""
    return IMAGE_SIZE.get(channels_in, IMAGE_SIZE[3])


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {"small_cnn": small_cnn}


def build(factory: Mapping[str, Any]) -> nn.Module:
    """Build a network from `name` (ours, or `package.module:function`) and that function's arguments."""
    name = str(factory["name"])
    arguments = {key: value for key, value in factory.items() if key != "name"}
    return _find(name)(**arguments)


def _find(name: str) -> Callable[..., nn.Module]:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    module, _, function = name.partition(":")
    try:
        found: Callable[..., nn.Module] = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ZooError(
            f"architecture '{name}'", f"it cannot be imported ({error})",
            f"one of {', '.join(ARCHITECTURES)} or package.module:function is needed",
            "install the package that defines it",
        ) from error  # fmt: skip
    return found
