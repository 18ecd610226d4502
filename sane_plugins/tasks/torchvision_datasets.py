"""Torchvision data sets that are already on disk; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sane_plugins.errors import TaskError, first_line
from sane_plugins.tasks.image_files import ImageSet

TORCHVISION = "torchvision:"


def read_torchvision(source: str) -> tuple[ImageSet, ImageSet]:
    """Return the images for training and for testing of `torchvision:NAME:FOLDER`.

    FOLDER is torchvision's `root`. Only data sets that keep all images in memory are supported, such as
    MNIST and its variants, CIFAR10, CIFAR100, SVHN, USPS and STL10.
    """
    _, name, folder = (*source.split(":", 2), "", "")[:3]
    if not folder:
        raise TaskError(
            source,
            "it names no folder",
            "torchvision:NAME:FOLDER is needed",
            "write for example torchvision:MNIST:data",
        )
    kind = getattr(_datasets(source), name, None)
    if not isinstance(kind, type):
        raise TaskError(
            source,
            f"torchvision has no data set '{name}'",
            "its class name is needed",
            "write for example torchvision:CIFAR10:data",
        )
    return _images(source, kind, folder, True), _images(source, kind, folder, False)


def _images(source: str, kind: Any, folder: str, train: bool) -> ImageSet:
    split = {"train": train} if "train" in _arguments(kind) else {"split": _split(train)}
    try:
        dataset = kind(Path(folder), download=False, **split)
        images = np.asarray(dataset.data)
        labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    except Exception as error:  # torchvision's data sets raise various errors
        raise TaskError(
            source,
            f"it cannot be read ({first_line(error)})",
            "the files lie in the folder as torchvision leaves them, and fit into memory",
            "give the folder that torchvision calls root, or an .npz file",
        ) from error
    labels = labels.astype(np.int64)
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or len(names) <= labels.max(initial=0):
        names = None
    return ImageSet(images, labels, None if names is None else np.array([*map(str, names)]))


def _arguments(kind: Any) -> tuple[str, ...]:
    from inspect import signature

    return tuple(signature(kind).parameters)


def _split(train: bool) -> str:
    return "train" if train else "test"


def _datasets(source: str) -> Any:
    try:
        from torchvision import datasets
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: one that was built for another torch
        raise TaskError(
            source,
            f"torchvision cannot be imported ({first_line(error)})",
            "it reads its data sets",
            "pip install 'sane-plugins[torchvision]', or give an .npz file",
        ) from error
    return datasets
