"""Read networks from files, by suffix: on demand where the form allows, never running code."""

from __future__ import annotations

from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import require_file, source_errors
from sane_plugins.formats.numpy_files import open_arrays
from sane_plugins.formats.safetensors_files import open_safetensors
from sane_plugins.formats.sharded import index_in, open_index
from sane_plugins.formats.suffixes import ARRAYS, CHECKPOINTS, INDEX, SCRIPTS
from sane_plugins.formats.torch_files.torch_checkpoints import open_checkpoint
from sane_plugins.weights import WeightGraph


def open_file(path: str | Path) -> WeightGraph | None:
    """Open a safetensors file, index or indexed folder, a torch file or a NumPy file; None for other files.

    Raises `SourceError` for a file that is missing, broken, empty of weights, or that holds code.
    """
    path = Path(path)
    if path.name.endswith(INDEX):
        return open_index(require_file(path))
    if path.suffix == ".safetensors":
        return open_safetensors(require_file(path))
    if path.suffix in CHECKPOINTS + SCRIPTS:
        return open_checkpoint(require_file(path))
    if path.suffix in ARRAYS:
        return open_arrays(require_file(path))
    if path.name.endswith(".bin.index.json"):
        raise SourceError(
            path,
            "it is an index of torch checkpoints",
            "an index of safetensors files is read",
            "convert the network to safetensors, or name its files one by one",
        )
    return _open_folder(path)


def _open_folder(path: Path) -> WeightGraph | None:
    with source_errors(path):
        is_folder = len(str(path)) < 4096 and "\0" not in str(path) and path.is_dir()
    index = index_in(path) if is_folder else None
    return open_index(require_file(index)) if index else None
