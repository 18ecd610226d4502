"""Folders of images: a sub-folder per class, in one set or in several (`train`, `val`, `test`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sane_plugins.errors import TaskError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SETS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
_SYSTEM_FILES = frozenset(
    ("thumbs.db", "desktop.ini", "__macosx")
)  # beside those that begin with a dot
_FEW = 4


@dataclass(frozen=True)
class ClassFolder:
    """The image files of a folder by class, in the sorted order of the classes' names.

    Files in folders within a class belong to it.
    """

    path: Path
    files: Mapping[str, Sequence[Path]]

    @classmethod
    def of(cls, path: Path) -> ClassFolder:
        """List the files of a folder's classes. Raises `TaskError` where one is empty, or there are none."""
        names = _sub_folders(path)
        files = {name: tuple(_files_within(path / name)) for name in names}
        if empty := [name for name, found in files.items() if not found]:
            raise TaskError(
                path,
                f"sub-folder '{empty[0]}' holds no files",
                "each sub-folder is one class of images",
                "remove it, or name the folder that holds the classes",
            )
        if not names:
            raise TaskError(
                path,
                "it has no sub-folders",
                "one sub-folder of images per class is needed",
                "sort the images into a sub-folder per class",
            )
        return cls(path, files)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes' names, by label."""
        return tuple(self.files)

    def require_classes_of(self, train: ClassFolder) -> None:
        """Raise `TaskError` unless the classes are those of another folder."""
        missing = [name for name in train.classes if name not in self.files]
        unknown = [name for name in self.classes if name not in train.files]
        if unknown:
            raise TaskError(
                self.path,
                f"it has the classes {_quoted(unknown)}",
                f"{train.path} has none of that name{'' if len(unknown) == 1 else 's'}",
                "give the sub-folders of both the same names",
            )
        if missing:
            raise TaskError(
                self.path,
                f"it has no images of {_quoted(missing)}",
                f"{train.path} has, and each class is needed in both",
                "add a sub-folder of the same name with images of it",
            )


def find_sets(path: Path) -> dict[str, ClassFolder]:
    """Return the sets of images in a folder: `TRAIN`, and the others that it has.

    Sub-folders `train`, `val` (`valid`, `validation`) and `test` are sets where there is no other, and the
    first holds folders; else each sub-folder is a class. Raises `TaskError` where the classes of the sets
    differ.
    """
    names = _sub_folders(path)
    roles = {name: _SETS.get(name.lower()) for name in names}
    train = [name for name, role in roles.items() if role == TRAIN]
    if not train or None in roles.values() or not _sub_folders(path / train[0]):
        return {TRAIN: ClassFolder.of(path)}
    sets: dict[str, ClassFolder] = {}
    for name, role in roles.items():
        assert role is not None
        if role in sets:
            raise TaskError(
                path,
                f"'{sets[role].path.name}' and '{name}' are both images for one purpose",
                "train, val and test are told apart by their names",
                "put their images into one folder, or remove one",
            )
        sets[role] = ClassFolder.of(path / name)
    for found in sets.values():
        found.require_classes_of(sets[TRAIN])
    return {TRAIN: sets.pop(TRAIN), **sets}


def count_files(path: Path, most: int) -> int:
    """Return the number of files that may be images in a folder and all below it, at most `most`."""
    return sum(1 for _ in islice(_files_within(path), most))


def _sub_folders(path: Path) -> list[str]:
    return sorted(x.name for x in path.iterdir() if x.is_dir() and _is_users(x.name))


def _files_within(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, in sorted order."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(filter(_is_users, folders))
        for name in sorted(filter(_is_users, files)):
            if (path := Path(current, name)).is_file():
                yield path


def _is_users(name: str) -> bool:
    """Return whether a name is one that a user gave, not the system."""
    return not name.startswith(".") and name.lower() not in _SYSTEM_FILES


def _quoted(names: Sequence[str]) -> str:
    few = ", ".join(f"'{name}'" for name in names[:_FEW])
    return few if len(names) <= _FEW else f"{few} and {len(names) - _FEW} more"
