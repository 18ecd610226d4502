"""Read a task from where its images lie: `digits`, an `.npz` file, a folder, a data set of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType

import numpy as np
import torch

from sane_plugins.arguments import require_type
from sane_plugins.errors import TaskError, UsageError, first_line
from sane_plugins.tasks.class_folders import TEST, TRAIN, VALIDATION, ClassFolder, find_sets
from sane_plugins.tasks.image_arrays import (
    check_images,
    check_labels,
    class_names,
    count_classes,
    pixel_unit,
    require_all_classes,
    require_images,
    require_known_classes,
)
from sane_plugins.tasks.image_files import ImageSet, read_sets
from sane_plugins.tasks.npz_files import read_npz
from sane_plugins.tasks.splitting import stratified_split
from sane_plugins.tasks.task import Task
from sane_plugins.tasks.torchvision_datasets import TORCHVISION, read_torchvision

_TEST_SHARE = 0.2
_MAX_SHOWN = 4096  # characters of a name
_KEYS = {TRAIN: ("x_train", "y_train"), TEST: ("x_test", "y_test"), VALIDATION: ("x_val", "y_val")}
_CLASSES = "classes"


def load_task(
    source: str | Path,
    size: int | None = None,
    validation: str | Path | None = None,
    *,
    sets_test_aside: bool = True,
) -> Task:
    """Read a task: `digits` (scikit-learn's 8x8 handwritten digits), an `.npz` file, or an image folder.

    `torchvision:MNIST:FOLDER` is a torchvision data set that is already in that folder.

    An `.npz` holds `x_train` (N, H, W) or (N, H, W, C), `y_train` (N,), and `x_test`, `y_test`; without
    these, a fifth of the images of each class is held out, always the same, or, where nothing is to be tested
    (`sets_test_aside` false), the training images stand for them. Images to choose by may be in
    `x_val`, `y_val`, and the classes' names in `classes`, in the order of the labels. A folder holds one
    sub-folder of images per class, or folders `train`, `val` and `test` that do. `validation` is another
    folder or file with images to choose by; where there are such images and no test images, they are these
    too. `size` resizes all images to a square of that many pixels, which allows a folder of mixed sizes.
    Raises `TaskError` if the source is unusable, `MixedSizesError` where a size is needed.
    """
    require_type("load_task, source", source, str, Path)
    require_type("load_task, size", size, int, NoneType)
    require_type("load_task, validation", validation, str, Path, NoneType)
    if size is not None and size < 1:
        raise UsageError("--size", f"it is {size}", "a size is at least 1 pixel", "give another")
    try:
        sets = _read(source, size, validation)
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise TaskError(
            f"{source}"[:_MAX_SHOWN],
            f"it cannot be read ({error.strerror or first_line(error)})",
            "images are needed",
            "check the name, and the right to read all that lies there",
        ) from error
    task = _build_task(str(source), sets, sets_test_aside)
    return task if size is None else task.resized(size)


def _read(
    source: str | Path, size: int | None, validation: str | Path | None
) -> dict[str, ImageSet]:
    """Return the sets of images of a task."""
    path, others = Path(source), None if validation is None else Path(validation)
    folders: dict[str, ClassFolder] = {}
    sets: dict[str, ImageSet] = {}
    if source == "digits":
        sets = _read_digits()
    elif str(source).startswith(TORCHVISION):
        sets = dict(zip((TRAIN, TEST), read_torchvision(str(source)), strict=True))
    elif path.is_dir():
        folders = find_sets(path)
    elif path.is_file():
        sets = _read_npz(path)
    else:
        raise TaskError(
            path,
            "there is no such file or folder",
            "images are needed",
            "give an .npz file, a folder with one sub-folder per class, or 'digits'",
        )
    if others is not None and others.is_dir():
        folders[VALIDATION] = ClassFolder.of(others)
        if TRAIN in folders:
            folders[VALIDATION].require_classes_of(folders[TRAIN])
    elif others is not None and others.is_file():
        given = _read_npz(others)
        sets[VALIDATION] = given.get(VALIDATION, given[TRAIN])
        folders.pop(VALIDATION, None)
    elif others is not None:
        raise TaskError(
            others,
            "there is no such file or folder",
            "images to choose by are needed",
            "give an .npz file, a folder with one sub-folder per class, or a share such as 0.2",
        )
    return {**sets, **(read_sets(folders, size) if folders else {})}


def _read_digits() -> dict[str, ImageSet]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = ImageSet(data.images.astype(np.float32), data.target.astype(np.int64))
    return _hold_out("digits", images)


def _read_npz(path: Path) -> dict[str, ImageSet]:
    others = [key for role in (TEST, VALIDATION) for key in _KEYS[role]]
    arrays = read_npz(path, _KEYS[TRAIN], others, (_CLASSES,))
    sets = {}
    for role, keys in _KEYS.items():
        given = [key for key in keys if key in arrays]
        if len(given) == 1:
            raise TaskError(
                path,
                f"it holds {given[0]} alone",
                "images and their labels go together",
                f"give both {keys[0]} and {keys[1]}, or neither",
            )
        if given:
            images, labels = (arrays[key] for key in keys)
            sets[role] = ImageSet(images, labels, arrays.get(_CLASSES))
    return sets


def _hold_out(name: str, given: ImageSet) -> dict[str, ImageSet]:
    """Hold out test images with a fixed seed."""
    images_place, labels_place = _places(name, TRAIN, given)
    require_images(images_place, given.images)
    labels = check_labels(labels_place, given.labels, given.images)
    rng = torch.Generator().manual_seed(0)
    parts = [part.numpy() for part in stratified_split(labels, _TEST_SHARE, rng)]
    if not len(parts[1]):
        raise TaskError(
            name,
            "no class has two images or more",
            "some are needed to test with",
            "give more images, or x_test and y_test"
            if given.folder is None
            else "give more images, or folders 'train' and 'test' of them",
        )
    return {
        role: replace(given, images=given.images[part], labels=given.labels[part])
        for role, part in zip((TRAIN, TEST), parts, strict=True)
    }


def _places(name: str, role: str, given: ImageSet) -> tuple[str, str]:
    """Return what errors call the images and the labels of a set: its folder, or its arrays."""
    if given.folder is not None:
        return str(given.folder), str(given.folder)
    x_key, y_key = _KEYS[role]
    return f"{name}, '{x_key}'", f"{name}, '{y_key}'"


def _build_task(name: str, sets: Mapping[str, ImageSet], sets_test_aside: bool) -> Task:
    """Validate and standardise. Affine pixel scalings, such as to [0, 1], cancel out here.

    Images to choose by are test images too where there are no others.
    """
    if sets.keys() == {TRAIN} and sets_test_aside:
        sets = _hold_out(name, sets[TRAIN])
    train = sets[TRAIN]
    unit = pixel_unit(train.images) if train.unit is None else train.unit
    x, y = {}, {}
    places = {role: _places(name, role, given) for role, given in sets.items()}
    for role in _KEYS:
        if (given := sets.get(role)) is None:
            continue
        x[role] = check_images(places[role][0], given.images)
        y[role] = check_labels(places[role][1], given.labels, given.images)
        if x[role].shape[1:] != x[TRAIN].shape[1:]:
            raise TaskError(
                places[role][0],
                f"its images are {tuple(x[role].shape[1:])}",
                f"those of {train.folder or 'x_train'} are {tuple(x[TRAIN].shape[1:])}",
                "give both the same size",
            )
    in_folders = "add a sub-folder with images of another class"
    add = "add images of another class" if train.folder is None else in_folders
    class_count = count_classes(places[TRAIN][1], y[TRAIN], add)
    classes = class_names(name, train.classes, class_count)
    for role in sets.keys() - {TRAIN}:
        require_known_classes(places[role][1], y[role], class_count)
    if VALIDATION in sets:
        require_all_classes(places[VALIDATION][1], y[VALIDATION], classes)
    test = next(role for role in (TEST, VALIDATION, TRAIN) if role in sets)
    task = Task(
        name=name,
        x_train=x[TRAIN],
        y_train=y[TRAIN],
        x_test=x[test],
        y_test=y[test],
        x_validation=x.get(VALIDATION),
        y_validation=y.get(VALIDATION),
        classes=classes,
        pixel_deviation=(1 / unit,) * x[TRAIN].shape[1],
        pixel_unit=unit,
    )
    return task.standardized()
