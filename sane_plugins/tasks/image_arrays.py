"""Arrays of images and labels become tensors, where they can; what is wrong with them is one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sane_plugins.errors import TaskError
from sane_plugins.tasks.image_files import MAX_TASK_VALUES, Array

_MAX_CLASSES = 2**15
_CHANNELS = (1, 2, 3, 4)
_BYTE, _WORD = 255, 65535
_MAX_NAME = 255  # characters of a class's name


def pixel_unit(array: Array) -> float:
    """Return the pixel value of white, by which values are divided to lie between 0 and 1.

    Of floating-point images that is 1, unless they have larger values and no negative ones. Whole numbers
    in a type wider than they need are taken for those of 8 or 16 bits.
    """
    kind, largest = array.dtype.kind, float(array.max())
    if kind == "b" or (kind == "f" and (largest <= 1 or array.min() < 0)):
        return 1.0
    if kind == "f":
        return float(_BYTE) if _BYTE / 2 < largest <= _BYTE else largest
    if array.dtype.itemsize == 1 or largest <= _BYTE:
        return float(min(_BYTE, np.iinfo(array.dtype).max))
    return float(_WORD if largest <= _WORD else np.iinfo(array.dtype).max)


def check_images(place: str, array: Array) -> torch.Tensor:
    """Return (N, C, H, W) float32 from (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    require_images(place, array)
    with np.errstate(over="ignore"):  # to infinity, which is refused
        images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise TaskError(
            place,
            f"{bad} of {len(images)} images hold NaN, infinity or numbers beyond single precision",
            "pixels must be finite",
            "remove or repair these images",
        )
    if images.min() == images.max() and array.min() != array.max():
        raise TaskError(
            place,
            f"its pixels differ by less than single precision tells apart, from {array.min()} on",
            "images are computed with in single precision",
            "subtract what they have in common",
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in _CHANNELS:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous()


def require_images(place: str, array: Array) -> None:
    """Raise `TaskError` for arrays that are no images, or too many."""
    if array.ndim not in (3, 4) or array.dtype.kind not in "uifb" or 0 in array.shape:
        raise TaskError(
            place,
            f"it is {array.dtype} of shape {array.shape}",
            "images are numbers of shape (N, height, width) or (N, height, width, channels)",
            "reshape or convert the array",
        )
    if array.ndim == 4 and not {array.shape[1], array.shape[3]} & {*_CHANNELS}:
        raise TaskError(
            place,
            f"its shape is {array.shape}",
            "an image has 1 to 4 channels, as its last axis",
            "reorder the axes to (N, height, width, channels)",
        )
    require_task_values(place, array.size)


def require_task_values(place: str, values: int) -> None:
    """Raise `TaskError` where all images together are more values than a task may have."""
    if values > MAX_TASK_VALUES:
        raise TaskError(
            place,
            f"its images are {values:,} values",
            f"a task has at most {MAX_TASK_VALUES:,}",
            "give fewer or smaller images",
        )


def check_labels(place: str, array: Array, images: Array) -> torch.Tensor:
    """Return labels (N,) int64 from integers (N,) or (N, 1), one per image."""
    if array.dtype.kind not in "ui" or array.ndim not in (1, 2) or array.size != len(array):
        raise TaskError(
            place,
            f"it is {array.dtype} of shape {array.shape}",
            "labels are whole numbers of shape (N,), counted from 0",
            "convert them to integers, one for each image",
        )
    if len(array) != len(images):
        raise TaskError(
            place,
            f"there are {len(array)} labels",
            f"there are {len(images)} images",
            "give one label for each image",
        )
    labels = torch.from_numpy(array.reshape(-1).astype(np.int64))
    if (classes := len(labels.unique())) > _MAX_CLASSES:
        raise TaskError(
            place,
            f"there are {classes:,} classes",
            f"a task has at most {_MAX_CLASSES:,}",
            "give the images of fewer",
        )
    return labels


def count_classes(place: str, y_train: torch.Tensor, add: str) -> int:
    """Return the number of classes. Raises `TaskError` unless they are numbered from 0, two or more.

    `add` is what adds another class.
    """
    found = y_train.unique().tolist()
    if found != list(range(len(found))):
        raise TaskError(
            place,
            f"the labels are {_abbreviate(found)}",
            f"{len(found)} classes are numbered 0 to {len(found) - 1} without gaps",
            "number the labels from 0, without gaps",
        )
    if len(found) < 2:
        raise TaskError(
            place,
            "there is a single class",
            "a task needs two or more",
            add,
        )
    return len(found)


def require_known_classes(place: str, labels: torch.Tensor, classes: int) -> None:
    """Raise `TaskError` for labels of classes that no training image has."""
    unknown = sorted(label for label in labels.unique().tolist() if not 0 <= label < classes)
    if unknown:
        raise TaskError(
            place,
            f"it has labels {_abbreviate(unknown)}",
            "no training image has these",
            "test on the classes that are trained",
        )


def require_all_classes(place: str, labels: torch.Tensor, classes: Sequence[str]) -> None:
    """Raise `TaskError` unless there is a label of each class."""
    missing = sorted({*range(len(classes))} - {*labels.unique().tolist()})
    if missing:
        raise TaskError(
            place,
            f"there is no image of class '{classes[missing[0]]}' to choose by",
            "each class that is trained is needed there",
            "add images of it",
        )


def class_names(name: str, given: Array | None, classes: int) -> tuple[str, ...]:
    """Return the names of the classes by label: those given, if they are names, or numbers.

    Raises `TaskError` where names are given for fewer classes.
    """
    if given is None or given.ndim != 1 or given.dtype.kind not in "USiu":
        return tuple(map(str, range(classes)))
    if len(given) < classes:
        raise TaskError(
            f"{name}, 'classes'",
            f"it names {len(given)} classes",
            f"the labels are those of {classes}",
            "name each class, in the order of the labels",
        )
    names = (x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in given.tolist())
    return tuple(x[:_MAX_NAME] for x in names)[:classes]


def _abbreviate(numbers: Sequence[int]) -> str:
    few = ", ".join(str(n) for n in numbers[:12])
    return few if len(numbers) <= 12 else f"{few} ... {numbers[-1]}"
