"""Stages of real_forms.py that make what it trains on: files of images, and folders that travel to a GPU."""

from __future__ import annotations

import argparse
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from real_forms_shared import ROOT, in_half, say

from sane_plugins.atomic_files import write_whole
from sane_plugins.runtime import random_stream
from sane_plugins.zoo import Zoo, evaluation_pool, import_published, is_zoo, write_zoo

PHOTOS = "tiny-imagenet-100.zip"
HELD_OUT = 10  # of the photos of a class one in so many is a test image
PUBLISHED = ("mnist-cnn", "cifar10-cnn")


def pack(arguments: argparse.Namespace) -> None:
    """Write what a GPU session needs into folders part1, part2, ..., each small enough for one transfer."""
    data = arguments.data / "datasets"
    photos, tables, toys = (arguments.work / f"part{i}" for i in (1, 2, 3))
    for folder in (photos, tables, toys):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with (
        zipfile.ZipFile(data / PHOTOS) as stored,
        zipfile.ZipFile(photos / PHOTOS, "w") as written,
    ):
        for name in _photo_names(stored, arguments.photos):
            written.writestr(name, stored.read(name))
    for name in ("cifar10.npz", "fashion_mnist.npz"):
        shutil.copy(data / name, tables)
    for toy in _toys(arguments.data):
        pool = evaluation_pool(toy)
        kept = toy.where(lambda entry, pool=pool: entry.network not in pool)  # type: ignore[misc]
        items = ((entry, in_half(toy.state_dict(entry))) for entry in kept.entries)
        write_zoo(toys / toy.name, toy.name, items)
    if is_zoo(arguments.work / "published"):  # of files, made by `sane-plugins zoo add`
        files = Zoo.open(arguments.work / "published")
        items = ((entry, in_half(files.state_dict(entry))) for entry in files.entries)
        write_zoo(photos / "published", "published", items)
    for folder in (photos, tables, toys):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        say(f"{folder}: {size / 1e6:.1f} MB")


def _toys(data: Path) -> list[Zoo]:
    """Return the finite networks of the published zoos, and of those of benchmarks/zoos.py that are there."""
    published = [import_published(data / "zoos" / f"{name}.json") for name in PUBLISHED]
    trained = sorted((ROOT / "runs" / "zoos").glob("*"))
    zoos = [*published, *(Zoo.open(folder) for folder in trained if is_zoo(folder))]
    return [x.where(lambda entry: bool(entry.properties["finite"])) for x in zoos]


def images(arguments: argparse.Namespace) -> None:
    """Write the recipe's files of images: photos are decoded, the others copied."""
    folder = arguments.work / "images"
    folder.mkdir(exist_ok=True)
    data = arguments.data / "datasets" if (arguments.data / "datasets").exists() else arguments.data
    for name in ("cifar10.npz", "fashion_mnist.npz"):
        shutil.copy(data / name, folder)
    write_whole(
        folder / "photos100.npz", lambda path: _decode(data / PHOTOS, arguments.photos, path)
    )


def _decode(archive: Path, most: int, path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(archive) as stored:
        names = _photo_names(stored, most)
        pictures = [Image.open(io.BytesIO(stored.read(name))).convert("RGB") for name in names]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    classes = sorted({name.split("/")[0] for name in names})
    labels = np.array([classes.index(name.split("/")[0]) for name in names], dtype=np.uint8)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=random_stream(0, "held out", label)).numpy()
        is_test[members[order[: len(members) // HELD_OUT]]] = True
    with path.open("wb") as file:
        np.savez(
            file,
            x_train=pixels[~is_test],
            y_train=labels[~is_test],
            x_test=pixels[is_test],
            y_test=labels[is_test],
            classes=np.array(classes),
        )


def _photo_names(stored: zipfile.ZipFile, most: int) -> list[str]:
    """Return the first photos of each class, by name."""
    by_class: dict[str, list[str]] = {}
    for name in sorted(name for name in stored.namelist() if name.endswith(".JPEG")):
        by_class.setdefault(name.split("/")[0], []).append(name)
    return [name for names in by_class.values() for name in names[:most]]
