"""Which form a file has, by its content: suffixes are habits, and people rename files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.suffixes import ARRAYS, CHECKPOINTS, EXPORTED, SCRIPTS

Form = Literal["safetensors", "zip", "pickle", "npy"]

_MAGICS: tuple[tuple[bytes, Form], ...] = (
    (b"PK\3\4", "zip"),
    (b"PK\5\6", "zip"),  # without members
    (b"\x93NUMPY", "npy"),
    *((bytes([0x80, protocol]), "pickle") for protocol in range(2, 6)),
)


def content_form(path: Path) -> Form | None:
    """Return the form that a file's first bytes tell; None where they tell none of ours."""
    with source_errors(path), path.open("rb") as file:
        head = file.read(9)
        size = path.stat().st_size
    # First, because a header's length may begin with a pickle's two bytes.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    return next((form for magic, form in _MAGICS if head.startswith(magic)), None)


def suffix_form(path: Path) -> str:
    """Return the form that a file's suffix promises, whether in capitals or not; empty for other suffixes."""
    suffix = path.suffix.lower()
    if suffix in (*CHECKPOINTS, *SCRIPTS, *EXPORTED):
        return "torch"
    return "NumPy" if suffix in ARRAYS else suffix[1:] if suffix == ".safetensors" else ""
