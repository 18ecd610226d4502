"""What is known of a published network: from the files beside it, or from torchvision by its file's name.

Only what is shown or computed with is taken, each part for itself: a part that is wrong is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from sane_plugins.architectures import import_torchvision
from sane_plugins.formats import declared_settings
from sane_plugins.grafting import Preparation, PromptInfo

_IMAGENET = "ImageNet-1k"
_TORCHVISION_FILE = re.compile(r"\w+-[0-9a-f]{8}\.pth")
_MOST_CLASSES = 100_000
_MOST_TEXT = 200  # characters of a name


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's classes in their order: synonyms, and WordNet's number of each."""
    text = (files("sane_plugins") / "data" / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def declared_info(source: str, path: Path) -> PromptInfo:
    """Return what is known of the network in a file that `source` names."""
    settings = declared_settings(path)
    published = _mapping(settings.get("pretrained_cfg"))  # timm's
    licence = _text(published.get("license"))
    prepared = _preparation_of(published) or _transformers_preparation(settings)
    if classes := _labels(settings):
        return PromptInfo(
            name=source, source=str(path), licence=licence, classes=classes, preparation=prepared
        )
    is_imagenet = published.get("num_classes") == 1000 and "in1k" in _text(published.get("tag"))
    known = _of_torchvision(path.name) if not settings.get("architecture") else None
    if known is not None:
        return known
    return PromptInfo(
        name=source,
        source=str(path),
        task=_IMAGENET if is_imagenet else "",
        licence=licence,
        classes=imagenet_classes() if is_imagenet else (),
        preparation=prepared,
    )


def _labels(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of classes by their numbers, as transformers (`id2label`) or timm write them."""
    by_number = settings.get("id2label")
    if isinstance(by_number, Mapping):
        names = [by_number.get(str(number)) for number in range(len(by_number))]
    else:
        names = settings.get("label_names") or []
        described = _mapping(settings.get("label_descriptions"))
        if isinstance(names, list):
            names = [described.get(name, name) if isinstance(name, str) else name for name in names]
    if not isinstance(names, list) or not 0 < len(names) <= _MOST_CLASSES:
        return ()
    if not all(isinstance(name, str) and len(name) <= _MOST_TEXT for name in names):
        return ()
    # `LABEL_0` is what transformers writes where nobody gave a name.
    return () if all(name.startswith("LABEL_") for name in names) else tuple(names)


def _preparation_of(published: Mapping[str, Any]) -> Preparation | None:
    size = published.get("input_size")
    if not isinstance(size, list) or len(size) != 3:
        return None
    return _preparation(published.get("mean"), published.get("std"), size[1:])


def _transformers_preparation(settings: Mapping[str, Any]) -> Preparation | None:
    told = _mapping(settings.get("preprocessor"))
    size = _mapping(told.get("size"))
    side = size.get("shortest_edge")
    sides = [size.get("height", side), size.get("width", side)]
    return _preparation(told.get("image_mean"), told.get("image_std"), sides)


def _preparation(mean: Any, deviation: Any, size: Any) -> Preparation | None:
    """Return a preparation; None where a part of it is not there, or cannot be computed with."""
    numbers = [_numbers(x) for x in (mean, deviation)]
    if not all(numbers) or len(numbers[0]) != len(numbers[1]) or min(numbers[1]) <= 0:
        return None
    if not all(type(x) is int and 0 < x < 10_000 for x in size):
        return None
    return Preparation(mean=numbers[0], deviation=numbers[1], size=(size[0], size[1]))


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not 1 <= len(values) <= 4:
        return ()
    is_right = all(type(x) in (int, float) and isfinite(x) for x in values)
    return tuple(map(float, values)) if is_right else ()


def _of_torchvision(file: str) -> PromptInfo | None:
    """Return what torchvision says of the published file of that name, where it is installed."""
    if not _TORCHVISION_FILE.fullmatch(file) or find_spec("torchvision") is None:
        return None
    return _torchvision_files().get(file)


@cache
def _torchvision_files() -> Mapping[str, PromptInfo]:
    return {info.source.rpartition("/")[2]: info for info in _torchvision_infos()}


def _torchvision_infos() -> Iterator[PromptInfo]:
    models = import_torchvision().models
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            told = weights.transforms()
            size = getattr(told, "crop_size", None)
            sides = [*size] * 2 if isinstance(size, list) and len(size) == 1 else [*(size or ())]
            mean, deviation = (getattr(told, x, None) for x in ("mean", "std"))
            classes = tuple(map(str, weights.meta.get("categories") or ()))
            is_imagenet = len(classes) == len(imagenet_classes())
            yield PromptInfo(
                name=f"torchvision:{name}@{weights.name}",
                source=weights.url,
                task=_IMAGENET if is_imagenet else "",
                classes=imagenet_classes() if is_imagenet else classes,
                preparation=_preparation(mean, deviation, sides) if len(sides) == 2 else None,
            )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _MOST_TEXT else ""
