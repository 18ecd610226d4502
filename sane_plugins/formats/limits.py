"""Limits of what is read, so that a small file means small work; the table is in docs/reference/files.md.

All are checked before anything is unpacked or allocated. Files of real networks are far from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from sane_plugins.errors import SourceError
from sane_plugins.weights import MAX_AXES, shape_text

TENSORS = 300_000  # of one network
FREE_TENSORS = 3_000  # however small the file is; more need
BYTES_PER_TENSOR = 1024  # of the file each, so that reading them is in proportion to it
NAME = 1_000  # characters of a tensor's name
JSON_BYTES = 64_000_000
JSON_PARTS = 4_000_000  # brackets and commas
MAX_EXPANSION = 100  # values may take as many times the bytes that hold them (zip, views, sparse),
ROOM = 16 * 2**20  # and so many bytes in any case

_MAX_SIZE = 2**63
_SHOWN = 80  # characters of a name in a message


def require_tensor_count(path: Path, count: int, nbytes: int | None = None) -> None:
    """Raise `SourceError` where a file, of `nbytes` if given, has more tensors than a network can have."""
    if count > TENSORS:
        raise _error(path, f"it tells of {count} tensors", f"at most {TENSORS} are read")
    if nbytes is not None and count > FREE_TENSORS + nbytes // BYTES_PER_TENSOR:
        raise _error(
            path,
            f"it tells of {count} tensors in {nbytes} bytes",
            f"at most {FREE_TENSORS} are read, and one more for every {BYTES_PER_TENSOR} bytes",
        )


def require_names(path: Path, names: Iterable[str]) -> None:
    """Raise `SourceError` where a tensor's name is too long."""
    for name in names:
        if len(name) > NAME:
            raise _error(
                path,
                f"a tensor's name has {len(name)} characters ('{name[:_SHOWN]}...')",
                f"at most {NAME} are read",
            )


def require_shape(path: Path, name: str, shape: Sequence[int]) -> None:
    """Raise `SourceError` where a tensor has too many axes, or sizes that no tensor has."""
    if len(shape) > MAX_AXES:
        raise _error(
            path,
            f"{name[:_SHOWN]} has {len(shape)} axes",
            f"tensors of at most {MAX_AXES} are read",
        )
    if prod(n for n in shape if n) >= _MAX_SIZE:
        raise _error(
            path,
            f"{name[:_SHOWN]} has the shape {shape_text(shape)}",
            "no tensor is that large",
        )


def expanded_bytes(held: int) -> int:
    """Return how many bytes may be made of so many bytes of a file."""
    return MAX_EXPANSION * held + ROOM


def parse_json(path: Path, data: bytes) -> Any:
    """Parse a stranger's JSON. Raises `ValueError` where it is none, or gives a name twice.

    Raises `SourceError` where it is too large or too deeply nested.
    """
    require_json_size(path, len(data))
    # Counting costs a thousandth of parsing; a part may take a hundred bytes of memory.
    if (parts := sum(map(data.count, (b",", b"[", b"{")))) > JSON_PARTS:
        raise _error(
            path,
            f"its JSON has {parts} brackets and commas",
            f"at most {JSON_PARTS} are read",
        )
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise _error(path, "its JSON is nested too deep", "a plain one is needed") from error


def require_json_size(path: Path, size: int) -> None:
    """Raise `SourceError` where a file's JSON has too many bytes; to be called before they are read."""
    if size > JSON_BYTES:
        raise _error(path, f"its JSON has {size} bytes", f"at most {JSON_BYTES} are read")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name is given twice")
    return members


def _error(path: Path, found: str, needed: str) -> SourceError:
    return SourceError(path, found, needed, "name another file")
