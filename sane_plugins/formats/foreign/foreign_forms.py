"""Forms of other libraries that are not read: named for what they are, with the command that converts them.

A form is told by its content: the first bytes of a file, or the files in a folder. Nothing is parsed further.
"""

from __future__ import annotations

from pathlib import Path

from sane_plugins.formats.foreign import foreign_content as content
from sane_plugins.formats.foreign.foreign_content import FileEnds
from sane_plugins.formats.foreign.foreign_table import FILES, FOLDERS, ForeignForm
from sane_plugins.formats.guards import exists, source_errors


def foreign_form(path: Path) -> ForeignForm | None:
    """Return which foreign form a file or folder has; None for any other, and for one that is not there.

    Raises `SourceError` where it cannot be read.
    """
    if not exists(path):
        return None
    with source_errors(path):
        if path.is_dir():
            names = {member.name for member in path.iterdir()}
            return next((form for fits, form in FOLDERS if fits(names)), None)
        if not path.is_file():
            return None
        ends = FileEnds.read(path)
        if content.is_readable_form(ends.head):
            return None
        return next((form for fits, form in FILES if fits(ends)), None)


def holds_onnx(path: Path) -> bool:
    """Return whether a file holds an ONNX model, whatever its name."""
    if not exists(path):
        return False
    with source_errors(path):
        return path.is_file() and content.is_onnx(FileEnds.read(path))
