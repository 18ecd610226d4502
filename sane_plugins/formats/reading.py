"""Read networks from files, by their content: on demand where the form allows, never running code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.detection import content_form, suffix_form
from sane_plugins.formats.foreign.foreign_forms import foreign_form
from sane_plugins.formats.guards import require_file, source_errors
from sane_plugins.formats.in_folders.declared import declarations
from sane_plugins.formats.in_folders.folders import locate
from sane_plugins.formats.numpy_files import array_names, open_array, open_arrays
from sane_plugins.formats.safetensors_files.networks import open_safetensors
from sane_plugins.formats.safetensors_files.sharded import open_index
from sane_plugins.formats.suffixes import CHECKPOINT_INDEX, INDEX
from sane_plugins.formats.torch_files.exported import find_programs, open_exported
from sane_plugins.formats.torch_files.sharded_checkpoints import open_checkpoint_index
from sane_plugins.formats.torch_files.torch_checkpoints import open_archive, open_pickles
from sane_plugins.formats.torch_files.torchscript import find_pickle, is_script, open_script
from sane_plugins.weights import WeightGraph

# What is wrong with a file of another content, by the form that its suffix promises.
_NOT_AS_PROMISED = {
    "torch": ("this is no torch checkpoint", "a file written by torch.save is needed"),
    "NumPy": ("this is no .npz or .npy file", "a file written by numpy.savez is needed"),
}


def open_file(path: str | Path) -> WeightGraph | None:
    """Open a safetensors file or index, a torch or NumPy file, or the one of a folder or of `hf:org/name`.

    The content decides which it is; None for anything else. Raises `SourceError` for a file that is missing,
    broken, empty of weights, or whose form is another library's; and for a folder of several networks.
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
    if path.name.endswith(CHECKPOINT_INDEX):
        return open_checkpoint_index(require_file(path))
    if promised := suffix_form(path):
        return _open_content(require_file(path)) or _open_promised(path, promised)
    return _open_content(path) if _is_file(path) else None


def _open_content(path: Path) -> WeightGraph | None:
    """Open a file whose content tells its form; a note says so where its suffix does not."""
    form = content_form(path)
    if form is None:
        return None
    if form == "safetensors":
        found, graph = "safetensors", open_safetensors(path)
    elif form == "npy":
        found, graph = "NumPy", open_array(path)
    elif form == "pickle":
        found, graph = "torch", open_pickles(path)
    else:
        found, graph = _open_zip(path)
    if found == suffix_form(path):
        return graph
    return replace(graph, notes=(f"read as a {found} file: its content says so", *graph.notes))


def _open_zip(path: Path) -> tuple[str, WeightGraph]:
    """Return the form and the network of a zip archive, which its members tell."""
    archive = Archive(path)
    if programs := find_programs(archive):
        return "torch", open_exported(path, archive, programs)
    if name := find_pickle(archive):
        opened = open_script if is_script(archive, name) else open_archive
        return "torch", opened(path, archive, name)
    if array_names(archive):
        return "NumPy", open_arrays(path, archive)
    raise SourceError(
        path,
        "it is a zip archive of something else",
        "tensors are needed",
        "name a file that torch.save, torch.export.save, torch.jit.save or numpy.savez wrote",
    ).as_unknown()


def _open_promised(path: Path, promised: str) -> WeightGraph:
    """Raise the error for a file that is not what its suffix promises."""
    if promised == "safetensors":
        return open_safetensors(path)  # which says what is wrong with it
    raise SourceError(
        path,
        *_NOT_AS_PROMISED[promised],
        "check that the download is complete and the suffix is right",
    ).as_unknown()


def _is_file(path: Path) -> bool:
    with source_errors(path):
        return _can_exist(path) and path.is_file()


def _can_exist(path: Path) -> bool:
    return len(str(path)) < 4096 and "\0" not in str(path)
