"""Read networks from files, by suffix: on demand where the form allows, never running code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.declared import declarations
from sane_plugins.formats.folders import locate
from sane_plugins.formats.foreign_forms import foreign_form
from sane_plugins.formats.guards import require_file
from sane_plugins.formats.numpy_files import open_arrays
from sane_plugins.formats.safetensors_files import open_safetensors
from sane_plugins.formats.sharded import open_index
from sane_plugins.formats.suffixes import ARRAYS, CHECKPOINTS, INDEX, SCRIPTS
from sane_plugins.formats.torch_files.torch_checkpoints import open_checkpoint
from sane_plugins.weights import WeightGraph


def open_file(path: str | Path) -> WeightGraph | None:
    """Open a safetensors file or index, a torch or NumPy file, or the one of a folder or of `hf:org/name`.

    None for anything else. Raises `SourceError` for a file that is missing, broken, empty of weights, that
    holds code, or whose form is another library's; and for a folder of several networks.
    """
    located = locate(path)
    file = Path(path) if located is None else located.path
    if form := foreign_form(file):
        raise form.error(file)
    graph = _open(file)
    if graph is None:
        return None
    notes = (*declarations(file), *(located.notes if located else ()))
    return replace(graph, notes=tuple(dict.fromkeys((*graph.notes, *notes))))


def _open(path: Path) -> WeightGraph | None:
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
    return None
