"""Read a task from where its images lie: `digits`, an `.npz` file, a folder, a data set of torchvision."""

from __future__ import annotations

from pathlib import Path
from types import NoneType

import numpy as np
import torch

from sane_plugins.arguments import require_type
from sane_plugins.errors import TaskError, UsageError, first_line
from sane_plugins.tasks.image_arrays import (
    check_images,
    check_labels,
    class_names,
    count_classes,
    pixel_unit,
    require_images,
    require_known_classes,
)
from sane_plugins.tasks.image_files import Array, read_folder, read_npz
from sane_plugins.tasks.splitting import stratified_split
from sane_plugins.tasks.task import Task
from sane_plugins.tasks.torchvision_datasets import TORCHVISION, read_torchvision

_TEST_SHARE = 0.2
_MAX_SHOWN = 4096  # characters of a name
_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")
_CLASSES = "classes"


def load_task(source: str | Path, size: int | None = None) -> Task:
    """Read a task: `digits` (scikit-learn's 8x8 handwritten digits), an `.npz` file, or an image folder.

    `torchvision:MNIST:FOLDER` is a torchvision data set that is already in that folder.

    An `.npz` holds `x_train` (N, H, W) or (N, H, W, C), `y_train` (N,), and `x_test`, `y_test`; without
    these, a fifth of the images of each class is held out, always the same. An array `classes` may name the
    classes, in the order of the labels. A folder holds one sub-folder of images per class. `size` resizes
    all images to a square of that many pixels, which allows a folder of mixed sizes. Raises `TaskError` if
    the source is unusable.
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
        *arrays, classes = read_torchvision(str(source))
        task = _build_task(str(source), *arrays, classes=classes)
    elif path.is_dir():
        task = _split_test(str(path), *read_folder(path, size))
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
    arrays = read_npz(path, _TRAIN, _TEST, (_CLASSES,))
    classes = arrays.get(_CLASSES)
    given = [key for key in _TEST if key in arrays]
    if len(given) == 1:
        raise TaskError(
            path,
            f"it holds {given[0]} alone",
            "test images and their labels go together",
            "give both x_test and y_test, or neither",
        )
    if not given:
        return _split_test(str(path), arrays["x_train"], arrays["y_train"], classes)
    return _build_task(str(path), *(arrays[key] for key in (*_TRAIN, *_TEST)), classes=classes)


def _split_test(
    name: str, x: Array, y: Array, classes: Array | None = None, unit: float | None = None
) -> Task:
    """Hold out test images with a fixed seed."""
    require_images(name, "x_train", x)
    labels = check_labels(name, "y_train", y, x)
    train, test = stratified_split(labels, _TEST_SHARE, torch.Generator().manual_seed(0))
    if not len(test):
        raise TaskError(
            name,
            "no class has two images or more",
            "some are needed to test with",
            "give more images, or x_test and y_test",
        )
    arrays = (x[train.numpy()], y[train.numpy()], x[test.numpy()], y[test.numpy()])
    return _build_task(name, *arrays, classes=classes, unit=unit)


def _build_task(
    name: str, *arrays: Array, classes: Array | None = None, unit: float | None = None
) -> Task:
    """Validate and standardise. Affine pixel scalings, such as to [0, 1], cancel out here.

    `unit` is the pixel value of white, where it is known.
    """
    x_train, x_test = (
        check_images(name, "x_train", arrays[0]),
        check_images(name, "x_test", arrays[2]),
    )
    y_train = check_labels(name, "y_train", arrays[1], arrays[0])
    y_test = check_labels(name, "y_test", arrays[3], arrays[2])
    class_count = count_classes(name, y_train)
    require_known_classes(name, "y_test", y_test, class_count)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise TaskError(
            f"{name}, 'x_test'",
            f"its images are {tuple(x_test.shape[1:])}",
            f"those of x_train are {tuple(x_train.shape[1:])}",
            "give both the same size",
        )
    unit = pixel_unit(arrays[0]) if unit is None else unit
    task = Task(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=class_names(name, classes, class_count),
        pixel_deviation=(1 / unit,) * x_train.shape[1],
        pixel_unit=unit,
    )
    return task.standardized()
