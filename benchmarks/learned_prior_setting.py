"""What `learned_prior.py` tries: tasks, networks, the prompts that lend to them, and rates of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import sane_plugins
from sane_plugins.architectures import build, import_torchvision
from sane_plugins.grafting import PromptNetwork
from sane_plugins.host import Host
from sane_plugins.prompts import PromptReader

TASKS = {"animals": "animal_mnist", "photos10": "photos10", "pneumonia": "pneumoniamnist_subset"}
SEEDS, IMAGES, SIZE = 3, (1000, 100), 64
LR = 2e-3
DRAWS = 2
STEPS, HELD_OUT = 20, 5  # of images one in so many
FEW = 500  # fewer images than these are too few to choose a rate by a fifth of them
TRAINED = 16  # steps of training at least: an epoch of 1,000 images
RATES = {
    "refined": (3e-3, 1e-2),
    "same steps on weights": (3e-4, 1e-3),
    "same steps on relative weights": (3e-3, 1e-2),
}
SETTLING = ("fashion_mnist", "cifar10")
TRIED = {
    "refined": (1e-3, 3e-3, 1e-2),
    "same steps on weights": (1e-4, 3e-4, 1e-3),
    "same steps on relative weights": (1e-3, 3e-3, 1e-2),
}
SETTLED = {
    "refined": 3e-3,
    "same steps on weights": 1e-3,
    "same steps on relative weights": 1e-2,
}
"""The rates for few images: the best of those tried on the settling tasks (`--settle`)."""
Maker = Callable[[int], nn.Module]


def _own(name: str, **form: Any) -> Maker:
    return lambda classes: build({"name": name, "channels_in": 3, "classes": classes, **form})


def _torchvision(name: str) -> Maker:
    return lambda classes: getattr(import_torchvision().models, name)(num_classes=classes)


NETWORKS: Mapping[str, tuple[str, Maker]] = {
    "shufflenet_v2_x0_5": ("photo-mobilenet", _torchvision("shufflenet_v2_x0_5")),
    "deeper resnet": (
        "photo-resnet",
        _own("small_resnet", widths=[24, 48, 96, 128], blocks=[3, 3, 2, 1]),
    ),
    "wider mobilenet": (
        "photo-mobilenet",
        _own("small_mobilenet", widths=[20, 32, 48, 64, 96], blocks=[2, 2, 3, 2, 2], features=256),
    ),
    "deeper convnext": (
        "photo-convnext",
        _own("small_convnext", widths=[32, 64, 96, 128], blocks=[2, 3, 5, 2]),
    ),
}


def read_prompt(name: str) -> PromptNetwork:
    """Return a photo network of the wheel, which runs."""
    path = Path(sane_plugins.__file__).parent / "data" / "photo_networks" / f"{name}.safetensors"
    host = Host.installed()
    return PromptReader(host.open, host.recognizer)(path)
