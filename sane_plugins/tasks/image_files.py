"""Read images and labels from `.npz` files and image folders as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sane_plugins.errors import TaskError, first_line
from sane_plugins.formats import Archive

Array: TypeAlias = npt.NDArray[Any]


def read_npz(path: Path, needed: Sequence[str], also: Sequence[str]) -> dict[str, Array]:
    """Return the arrays named in `needed`, and those named in `also` that are present.

    Raises `TaskError` if one is missing, or if this is not a file of plain arrays.
    """
    try:
        Archive(path)  # refuses zip bombs
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = list(file.keys())
            arrays: dict[str, Array] = {k: file[k] for k in (*needed, *also) if k in names}
    except Exception as error:  # damaged bytes may make NumPy raise anything
        raise TaskError(
            path,
            "it cannot be read as an .npz file of plain arrays",
            "a task file is one that numpy.savez wrote, without pickled objects",
            "save it again with numpy.savez, or give a folder with one sub-folder per class",
        ) from error
    if missing := [key for key in needed if key not in arrays]:
        raise TaskError(
            path,
            f"it holds {', '.join(sorted(names)) or 'nothing'}, no {' and no '.join(missing)}",
            f"{' and '.join(needed)} are needed",
            "save the arrays under these names",
        )
    return arrays


def read_folder(path: Path, size: int | None) -> tuple[Array, Array, tuple[str, ...]]:
    """Return images, labels and class names of a folder with one sub-folder per class.

    `size` resizes every image to a square of that many pixels; without it all must have the same size.
    """
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [sorted(f for f in c.iterdir() if f.is_file() and f.name[0] != ".") for c in classes]
    if empty := [c.name for c, inside in zip(classes, files, strict=True) if not inside]:
        raise TaskError(
            path,
            f"sub-folder '{empty[0]}' holds no files",
            "each sub-folder is one class of images",
            "remove it, or name the folder that holds the classes",
        )
    if not classes:
        raise TaskError(
            path,
            "it has no sub-folders",
            "one sub-folder of images per class is needed",
            "sort the images into a sub-folder per class",
        )
    images = _read_images([file for inside in files for file in inside], size)
    labels = np.repeat(np.arange(len(classes)), [len(inside) for inside in files])
    return images, labels, tuple(c.name for c in classes)


def _read_images(files: Sequence[Path], size: int | None) -> Array:
    """Return (N, H, W) if all images are grey, otherwise (N, H, W, 3)."""
    image = _pillow()
    arrays: list[Array] = []
    for file in files:
        try:
            with image.open(file) as opened:
                picture = opened if opened.mode == "L" else opened.convert("RGB")
                if size is not None:
                    picture = picture.resize((size, size), image.Resampling.BILINEAR)
                arrays.append(np.asarray(picture))
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
            raise TaskError(
                file,
                f"it cannot be read as an image ({first_line(error)})",
                "the sub-folders of a task hold images only",
                "remove or replace it",
            ) from error
        if arrays[-1].shape[:2] != arrays[0].shape[:2]:
            (height, width), (other, wide) = arrays[0].shape[:2], arrays[-1].shape[:2]
            raise TaskError(
                file,
                f"its size is {wide} x {other} pixels",
                f"the images before it have {width} x {height}",
                "resize all images with --size",
            )
    if any(a.ndim == 3 for a in arrays):
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    return np.stack(arrays)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise TaskError(
            "image folder",
            "Pillow is not installed",
            "reading images needs it",
            "pip install 'sane-plugins[images]', or give an .npz file",
        ) from error
    return Image
