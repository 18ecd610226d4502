"""A target task: standardised labelled images, and the sources they are loaded from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

import numpy as np
import torch
from torch.nn.functional import interpolate

from sane_plugins.arguments import require_type
from sane_plugins.display import ShortRepr
from sane_plugins.errors import TaskError, UsageError, first_line
from sane_plugins.tasks.image_files import (
    MAX_TASK_VALUES,
    Array,
    read_folder,
    read_npz,
    require_resizable,
)
from sane_plugins.tasks.torchvision_datasets import TORCHVISION, read_torchvision

_TEST_SHARE = 0.2
_MAX_SHOWN = 4096  # characters of a name
_MAX_CLASSES = 2**15
_CHANNELS = (1, 2, 3, 4)
_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task(ShortRepr):
    """Images (N, C, H, W) float32 with labels (N,) int64 starting at 0, for training and testing.

    Images have mean 0 and deviation 1 per channel over the training images.
    """

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Return the number of image channels."""
        return self.x_train.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.x_train.shape[2], self.x_train.shape[3]

    def resized(self, size: int | tuple[int, int]) -> Task:
        """Return the task at another image size in pixels (bilinear, antialiased), standardised again."""
        size = (size, size) if isinstance(size, int) else size
        if size == self.size:
            return self
        require_resizable(self.name, self.size, size)
        images = len(self.y_train) + len(self.y_test)
        _require_task_values(self.name, images * self.channels * size[0] * size[1])
        x_train, x_test = (
            interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
            for x in (self.x_train, self.x_test)
        )
        x_train, x_test = _standardize(self.name, x_train, x_test)
        return replace(self, x_train=x_train, x_test=x_test)

    def repeated(self, channels: int) -> Task:
        """Return the task with its single grey channel repeated."""
        x_train, x_test = (x.expand(-1, channels, -1, -1) for x in (self.x_train, self.x_test))
        return replace(self, x_train=x_train.contiguous(), x_test=x_test.contiguous())

    def to(self, device: str | torch.device) -> Task:
        """Return the task with its images and labels on a device."""
        return replace(
            self,
            x_train=self.x_train.to(device),
            y_train=self.y_train.to(device),
            x_test=self.x_test.to(device),
            y_test=self.y_test.to(device),
        )

    def subset(self, count: int, rng: torch.Generator) -> Task:
        """Return the task with at most `count` training images, drawn at random; test images stay."""
        keep = torch.randperm(len(self.y_train), generator=rng)[:count]
        return replace(self, x_train=self.x_train[keep], y_train=self.y_train[keep])

    def held_out(self, fraction: float, rng: torch.Generator) -> Task:
        """Return the task with its training images split, stratified by class, into training and test images.

        The original test images are dropped, so that they cannot influence any selection.
        """
        train, test = _stratified_split(self.y_train, fraction, rng)
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_train[test],
            y_test=self.y_train[test],
        )


def load_task(source: str | Path, size: int | None = None) -> Task:
    """Read a task: `digits` (scikit-learn's 8x8 handwritten digits), an `.npz` file, or an image folder.

    `torchvision:MNIST:FOLDER` is a torchvision data set that is already in that folder.

    An `.npz` holds `x_train` (N, H, W) or (N, H, W, C), `y_train` (N,), and `x_test`, `y_test`; without
    these, a fifth of the images of each class is held out, always the same. A folder holds one
    sub-folder of images per class. `size` resizes all images to a square of that many pixels, which
    allows a folder of mixed sizes. Raises `TaskError` if the source is unusable.
    """
    require_type("load_task, source", source, str, Path)
    require_type("load_task, size", size, int, NoneType)
    if size is not None and size < 1:
        raise UsageError("--size", f"it is {size}", "a size is at least 1 pixel", "give another")
    try:
        task = _load(source, size)
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise TaskError(
            f"{source}"[:_MAX_SHOWN],
            f"it cannot be read ({error.strerror or first_line(error)})",
            "images are needed",
            "check the name, and the right to read all that lies there",
        ) from error
    return task if size is None else task.resized(size)


def _load(source: str | Path, size: int | None) -> Task:
    path = Path(source)
    if source == "digits":
        task = _load_digits()
    elif str(source).startswith(TORCHVISION):
        task = _build_task(str(source), *read_torchvision(str(source)))
    elif path.is_dir():
        images, labels, classes = read_folder(path, size)
        task = replace(_split_test(str(path), images, labels), classes=classes)
    elif path.is_file():
        task = _load_npz(path)
    else:
        raise TaskError(
            path,
            "there is no such file or folder",
            "images are needed",
            "give an .npz file, a folder with one sub-folder per class, or 'digits'",
        )
    return task


def _load_digits() -> Task:
    from sklearn.datasets import load_digits

    data = load_digits()
    return _split_test("digits", data.images.astype(np.float32), data.target.astype(np.int64))


def _load_npz(path: Path) -> Task:
    arrays = read_npz(path, _TRAIN, _TEST)
    given = [key for key in _TEST if key in arrays]
    if len(given) == 1:
        raise TaskError(
            path,
            f"it holds {given[0]} alone",
            "test images and their labels go together",
            "give both x_test and y_test, or neither",
        )
    if not given:
        return _split_test(str(path), arrays["x_train"], arrays["y_train"])
    return _build_task(str(path), *(arrays[key] for key in (*_TRAIN, *_TEST)))


def _split_test(name: str, x: Array, y: Array) -> Task:
    """Hold out test images with a fixed seed."""
    _require_images(name, "x_train", x)
    labels = _check_labels(name, "y_train", y, x)
    train, test = _stratified_split(labels, _TEST_SHARE, torch.Generator().manual_seed(0))
    if not len(test):
        raise TaskError(
            name,
            "no class has two images or more",
            "some are needed to test with",
            "give more images, or x_test and y_test",
        )
    return _build_task(name, x[train.numpy()], y[train.numpy()], x[test.numpy()], y[test.numpy()])


def _build_task(name: str, *arrays: Array) -> Task:
    """Validate and standardise. Affine pixel scalings, such as to [0, 1], cancel out here."""
    x_train, x_test = (
        _check_images(name, "x_train", arrays[0]),
        _check_images(name, "x_test", arrays[2]),
    )
    y_train = _check_labels(name, "y_train", arrays[1], arrays[0])
    y_test = _check_labels(name, "y_test", arrays[3], arrays[2])
    _check_classes(name, y_train, y_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise TaskError(
            f"{name}, 'x_test'",
            f"its images are {tuple(x_test.shape[1:])}",
            f"those of x_train are {tuple(x_train.shape[1:])}",
            "give both the same size",
        )
    x_train, x_test = _standardize(name, x_train, x_test)
    classes = tuple(str(c) for c in range(int(y_train.max()) + 1))
    return Task(
        name=name, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, classes=classes
    )


def _check_images(name: str, key: str, array: Array) -> torch.Tensor:
    """Return (N, C, H, W) float32 from (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    place = f"{name}, '{key}'"
    _require_images(name, key, array)
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


def _require_images(name: str, key: str, array: Array) -> None:
    """Raise `TaskError` for arrays that are no images, or too many."""
    place = f"{name}, '{key}'"
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
    _require_task_values(place, array.size)


def _require_task_values(place: str, values: int) -> None:
    if values > MAX_TASK_VALUES:
        raise TaskError(
            place,
            f"its images are {values:,} values",
            f"a task has at most {MAX_TASK_VALUES:,}",
            "give fewer or smaller images",
        )


def _check_labels(name: str, key: str, array: Array, images: Array) -> torch.Tensor:
    """Return labels (N,) int64 from integers (N,) or (N, 1), one per image."""
    place = f"{name}, '{key}'"
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


def _check_classes(name: str, y_train: torch.Tensor, y_test: torch.Tensor) -> None:
    found = y_train.unique().tolist()
    unknown = sorted(set(y_test.unique().tolist()) - set(found))
    if found != list(range(len(found))):
        raise TaskError(
            f"{name}, 'y_train'",
            f"the labels are {_abbreviate(found)}",
            f"{len(found)} classes are numbered 0 to {len(found) - 1} without gaps",
            "number the labels from 0, without gaps",
        )
    if len(found) < 2:
        raise TaskError(
            f"{name}, 'y_train'",
            "there is a single class",
            "a task needs two or more",
            "add images of another class",
        )
    if unknown:
        raise TaskError(
            f"{name}, 'y_test'",
            f"it has labels {_abbreviate(unknown)}",
            "no training image has these",
            "test on the classes that are trained",
        )


def _stratified_split(
    labels: torch.Tensor, fraction: float, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sorted indices of a stratified split; classes of two or more images are in both parts."""
    kept_indices, held_out_indices = [], []
    counts = labels.unique(return_counts=True)[1].tolist()
    for members in labels.argsort(stable=True).split(counts):
        members = members[torch.randperm(len(members), generator=rng)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out_indices.append(members[:count])
        kept_indices.append(members[count:])
    return torch.cat(kept_indices).sort().values, torch.cat(held_out_indices).sort().values


def _standardize(
    name: str, x_train: torch.Tensor, x_test: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardise per channel by the training images; a constant channel becomes 0."""
    mean = x_train.mean((0, 2, 3), keepdim=True)
    deviation = x_train.std((0, 2, 3), keepdim=True, correction=0)
    high, low = x_train.amax((0, 2, 3), True), x_train.amin((0, 2, 3), True)
    mean = torch.where(high == low, high, mean)  # a computed one is not exact
    largest = torch.maximum(high, -low)
    deviation[deviation <= 1e-6 * largest.clamp_max(1.0)] = 1.0
    x_train, x_test = ((x - mean).div_(deviation) for x in (x_train, x_test))
    # An infinite deviation would make finite images of 0.
    if not all(bool(x.isfinite().all()) for x in (mean, deviation, x_train, x_test)):
        raise TaskError(
            name,
            "its pixels are so large, or so small, that their mean or deviation overflows",
            "images are computed with in single precision",
            "divide them by a number, such as their maximum",
        )
    return x_train, x_test


def _abbreviate(numbers: Sequence[int]) -> str:
    few = ", ".join(str(n) for n in numbers[:12])
    return few if len(numbers) <= 12 else f"{few} ... {numbers[-1]}"
