"""Which files belong to a folder: what lies in it, and what the cache of Hugging Face links to from it."""

from __future__ import annotations

from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import source_errors


def stays_inside(path: Path) -> bool:
    """Return whether a file of a folder lies in it, links followed, or in the blobs of its cache."""
    folder, real = path.parent.resolve(), path.resolve()
    return real.parent in {folder, *_cache_blobs(folder)}


def folder_member(folder: Path, place: str) -> Path:
    """Return the path of a file or folder by its place below a folder.

    Raises `SourceError` for a place that leads out of it, by its name or by links.
    """
    parts = place.split("/")
    if any(part in ("", ".", "..") or {"\\", "\0", ":"} & {*part} for part in parts):
        raise SourceError(
            folder,
            f"it names {ascii(place)[:80]}",
            "plain names below it are read",
            "download the folder again",
        )
    path = folder.joinpath(*parts)
    with source_errors(path):
        root, real = folder.resolve(), path.resolve()
        is_inside = real.is_relative_to(root) or real.parent in _cache_blobs(root)
    if not is_inside:
        raise SourceError(
            folder,
            f"its file '{place}' leads out of its folder",
            "the files of a network lie in its folder",
            f"name the file itself: {real}",
        )
    return path


def _cache_blobs(folder: Path) -> set[Path]:
    """Return the folder of blobs that a Hugging Face cache links to from `snapshots/<revision>/...`."""
    blobs = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    return {*blobs[:1]}
