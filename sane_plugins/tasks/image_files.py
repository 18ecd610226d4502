"""Read images and labels of image folders as arrays."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sane_plugins.errors import SaneError, TaskError, first_line
from sane_plugins.tasks.class_folders import ClassFolder

Array: TypeAlias = npt.NDArray[Any]
MAX_IMAGE_PIXELS, MAX_TASK_VALUES = 2**26, 2**31
_MAX_ENLARGEMENT = 32
_MAX_EXPANSION, _ROOM = 100, 2**26  # decoded bytes for each of a file's, and in any case
_BYTES_PER_PIXEL, _COLOURS = 4, 3
_WHITE = 255.0
_FEW = 3  # images that an error names
_MOST_PIXELS = (
    f"an image has at most {MAX_IMAGE_PIXELS:,} pixels, 25 for each byte where it is large"
)
_MAKE_SMALLER = "make it smaller, or remove it"
_FINE_MODES = ("I", "F")  # numbers of any range, which 8 bits would clip
_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000"),
    *("AVIF", "PCX", "QOI", "SGI"),  # not ICO: its images may be larger than they are declared
)


@dataclass(frozen=True)
class ImageSet:
    """Images (N, H, W) or (N, H, W, C) and labels (N,), as they are read.

    `classes` are the classes' names, if any; `unit` is the pixel value of white, where it is known. `folder`
    is that of the images, where they lie in one.
    """

    images: Array
    labels: Array
    classes: Array | None = None
    unit: float | None = None
    folder: Path | None = None


class MixedSizesError(TaskError):
    """The images of a folder have several sizes; `usual_side` is the median of their shorter sides."""

    usual_side: int = 0


class _TooLargeError(TaskError):
    """An image is larger than such files may be."""


def read_sets(folders: Mapping[str, ClassFolder], size: int | None) -> dict[str, ImageSet]:
    """Return the images of folders, all of them grey (N, H, W), or all in colours (N, H, W, 3).

    `size` resizes every image to a square of that many pixels. Without it all must have the same size,
    else `MixedSizesError` is raised. All images that cannot be used are told in one `TaskError`.
    """
    files = [
        file for folder in folders.values() for inside in folder.files.values() for file in inside
    ]
    images, has_range = _read_images(files, size)
    sets, start = {}, 0
    for role, folder in folders.items():
        counts = [len(inside) for inside in folder.files.values()]
        sets[role] = ImageSet(
            images[start : start + sum(counts)],
            np.repeat(np.arange(len(counts)), counts),
            np.array(folder.classes),
            _WHITE if has_range else None,
            folder.path,
        )
        start += sum(counts)
    return sets


def _read_images(files: Sequence[Path], size: int | None) -> tuple[Array, bool]:
    """Return (N, H, W) if all images are grey, otherwise (N, H, W, 3), and whether they have a white.

    Those that have one are of 0 to 255, float32 where they are finer.
    """
    image = _pillow()
    bad = _check_sizes(image, files, size)
    arrays: list[Array] = []
    has_range: list[bool] = []
    for file in files:
        if file in bad:
            continue
        try:
            with _opened(image, file) as opened:
                pixels = _pixels(image, opened, size)
                has_range.append(_is_16_bit(opened) or opened.mode not in _FINE_MODES)
        except TaskError as error:
            bad[file] = error
        if bad:
            arrays.clear()  # the others are read only to tell which cannot be
            continue
        arrays.append(pixels)
        if has_range[-1] != has_range[0]:
            raise TaskError(
                file,
                "it and the images before it do not measure alike: one has pixels of any range",
                "all pixels run from black to white, or none does",
                "convert all images to one form",
            )
    if bad:
        raise _cannot_be_used(bad, len(files))
    if any(a.ndim == 3 for a in arrays):
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    return np.stack(arrays), has_range[0]


def _cannot_be_used(bad: Mapping[Path, TaskError], count: int) -> TaskError:
    """Return the error for images that cannot be used: one says itself what to do."""
    errors = [*bad.values()]
    if len(errors) == 1:
        return errors[0]
    few = ", ".join(f"{file}: {error.found}" for file, error in [*bad.items()][:_FEW])
    more = f" and {len(errors) - _FEW} more" if len(errors) > _FEW else ""
    large = sum(isinstance(error, _TooLargeError) for error in errors)
    ways = {0: "remove or replace them", len(errors): "make them smaller, or remove them"}
    return TaskError(
        os.path.commonpath([file.parent for file in bad]),
        f"{len(errors)} of {count:,} images cannot be used: {few}{more}",
        " and ".join(dict.fromkeys(error.needed for error in errors)),
        ways.get(large, "make smaller what is too large, and remove or replace the others"),
    )


def _check_sizes(image: Any, files: Sequence[Path], size: int | None) -> dict[Path, TaskError]:
    """Read what the files declare; return the errors of those that cannot be used.

    Raises `TaskError` where all are too much, and `MixedSizesError` where only their sizes are in the way.
    """
    kept, sizes = _TaskSize(size), {}
    bad: dict[Path, TaskError] = {}
    for file in files:
        try:
            with _opened(image, file) as opened:
                kept.require_usable(file, opened.size)
                sizes[file] = opened.size
        except TaskError as error:
            bad[file] = error
            continue
        kept.add(file, sizes[file])
    first = next(iter(sizes.values()), None)
    other = next((file for file, found in sizes.items() if found != first), None)
    if size is None and first is not None and other is not None and not bad:
        (width, height), (wide, high) = first, sizes[other]
        mixed = MixedSizesError(
            other,
            f"its size is {wide} x {high} pixels",
            f"the images before it have {width} x {height}",
            "resize all images with --size",
        )
        mixed.usual_side = sorted(map(min, sizes.values()))[len(sizes) // 2]
        raise mixed
    return bad


@contextmanager
def _opened(image: Any, file: Path) -> Iterator[Any]:
    """Open an image file; damage becomes one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: the limits here are tighter
            with image.open(file, formats=_known_formats(image)) as opened:
                yield opened
    except SaneError:
        raise
    except image.DecompressionBombError as error:
        raise _TooLargeError(
            file,
            f"it is too large to be read ({first_line(error)})",
            _MOST_PIXELS,
            _MAKE_SMALLER,
        ) from error
    except Exception as error:  # damaged bytes may make Pillow raise anything
        raise TaskError(
            file,
            f"it cannot be read as an image ({first_line(error)})",
            "the sub-folders of a task hold images only",
            "remove or replace it",
        ) from error


def _pixels(image: Any, opened: Any, size: int | None) -> Array:
    """Return an image's pixels: grey (H, W), or colours (H, W, 3)."""
    is_fine = _is_16_bit(opened) or opened.mode in _FINE_MODES
    if is_fine:
        picture = image.fromarray(np.asarray(opened, dtype=np.float32))
    else:
        picture = opened if opened.mode == "L" else opened.convert("RGB")
    if size is not None:
        picture = picture.resize((size, size), image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels / np.float32(257) if _is_16_bit(opened) else pixels  # 65535 / 257 is 255


def _is_16_bit(opened: Any) -> bool:
    """Return whether pixels run from 0 to 65535; older Pillows read PNG of 16 bits as 32."""
    mode: str = opened.mode
    return mode.startswith("I;16") or (mode == "I" and opened.format == "PNG")


class _TaskSize:
    """Adds up what the images of a task declare to hold, before any of it is decoded."""

    def __init__(self, size: int | None) -> None:
        self._size, self._kept, self._stored = size, 0, 0

    def require_usable(self, file: Path, declared: tuple[int, int]) -> None:
        """Raise `TaskError` where this image takes more memory than such a file may, or is too small."""
        (width, height), stored = declared, file.stat().st_size
        pixels = width * height
        if pixels > MAX_IMAGE_PIXELS or _BYTES_PER_PIXEL * pixels > _max_decoded(stored):
            raise _TooLargeError(
                file,
                f"it is {width} x {height} pixels in {stored:,} bytes",
                _MOST_PIXELS,
                _MAKE_SMALLER,
            )
        if self._size is not None:
            require_resizable(file, (height, width), (self._size, self._size))

    def add(self, file: Path, declared: tuple[int, int]) -> None:
        """Raise `TaskError` where all images up to this one take more memory than such files may."""
        (width, height), stored = declared, file.stat().st_size
        if self._size is not None:
            self._kept += _COLOURS * self._size**2
            limit = MAX_TASK_VALUES
        else:
            self._stored += stored
            self._kept += _COLOURS * width * height
            limit = _max_decoded(self._stored)
        if self._kept > limit:
            raise TaskError(
                file,
                f"with it, the images are {self._kept:,} values",
                f"files like these may hold {limit:,}",
                "resize the images with --size, or give fewer",
            )


def _max_decoded(stored: int) -> int:
    return max(_ROOM, _MAX_EXPANSION * stored)


def require_resizable(place: object, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Raise `TaskError` where images are to become more than 32 times as high or wide as they are."""
    if max(new) > _MAX_ENLARGEMENT * max(old):
        raise TaskError(
            place,
            f"its images of {old[1]} x {old[0]} pixels were to become {new[1]} x {new[0]}",
            f"they are made at most {_MAX_ENLARGEMENT} times as large",
            "choose a smaller size",
        )


def _known_formats(image: Any) -> list[str]:
    """Return the formats that are decoded in this process: Pillow reads others with programs it finds."""
    image.init()
    return [name for name in _FORMATS if name in image.OPEN]


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
