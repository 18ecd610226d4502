"""Read what is kept with a network beside its tensors: in the file's metadata, or in a file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sane_plugins.formats.guards import require_file, source_errors
from sane_plugins.formats.safetensors_files.artifact import HEADER
from sane_plugins.formats.safetensors_files.lazy_tensors import LazyTensors
from sane_plugins.formats.writing import sidecar

_MAX_BYTES = 2**28  # of a file beside the weights
_BROKEN = "what it says of its origin is broken"


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that were given when a network's file was written; empty where there are none.

    Raises `SourceError` where they are broken.
    """
    text = "{}"
    if require_file(path).suffix == ".safetensors":
        text = LazyTensors(path).metadata.get(HEADER, "{}")
    elif (beside := sidecar(path)).is_file():
        with source_errors(beside), beside.open("rb") as file:
            text = file.read(_MAX_BYTES).decode(errors="replace")
    with source_errors(path, _BROKEN, "a whole file"):
        entry = json.loads(text)
    return entry if isinstance(entry, dict) else {}
