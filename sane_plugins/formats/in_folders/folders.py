"""Which file holds the network of a folder: of Hugging Face, its cache, MLflow, or with a single file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.detection import content_form
from sane_plugins.formats.foreign.foreign_forms import foreign_form, holds_onnx
from sane_plugins.formats.guards import require_file, source_errors
from sane_plugins.formats.in_folders import hub_cache
from sane_plugins.formats.in_folders.declared import declarations
from sane_plugins.formats.in_folders.folder_members import folder_member
from sane_plugins.formats.in_folders.mlflow_folders import MLMODEL, network_place, read_mlmodel
from sane_plugins.formats.suffixes import (
    ARRAYS,
    CHECKPOINT_INDEX,
    CHECKPOINTS,
    EXPORTED,
    INDEX,
    SCRIPTS,
)

# The names under which Hugging Face's libraries keep one network; the first of a row that is there is read.
_PUBLISHED = tuple(
    (f"{safe}.safetensors", f"{safe}{INDEX}", f"{plain}.bin", f"{plain}{CHECKPOINT_INDEX}")
    for safe, plain in (
        ("model", "pytorch_model"),
        ("diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("open_clip_model", "open_clip_pytorch_model"),
        ("adapter_model", "adapter_model"),
    )
)
_FORMS = (
    ".safetensors",
    INDEX,
    CHECKPOINT_INDEX,
    *CHECKPOINTS,
    *SCRIPTS,
    *EXPORTED,
    ARRAYS[0],
    ".onnx",
    ".gguf",
)
# What trainers keep beside a network to go on with, and a part of a network that an index names.
_NO_NETWORK = re.compile(
    r"(?:training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.(?:bin|pt|pth)"
    r"|.*-\d{5}-of-\d{5}\.(?:safetensors|bin)"
)
_SHOWN, _MOST_FOLDERS, _MOST_FILES = 6, 200, 200


@dataclass(frozen=True)
class Located:
    """The file of a network that was named by a folder or by its name on the hub, and notes on the choice."""

    path: Path
    notes: tuple[str, ...] = ()


def locate(source: str | Path) -> Located | None:
    """Return the file of the network that a folder or an `hf:` name stands for; None for anything else.

    None too for a folder without files of networks. Raises `SourceError` where there are several, where a
    file leads out of its folder, and where the folder is of a form that is not read.
    """
    if hub_cache.is_hub_name(source):
        return _of_the_hub(str(source))
    path = Path(source)
    with source_errors(path):
        is_folder = len(str(path)) < 4096 and "\0" not in str(path) and path.is_dir()
    if not is_folder:
        return None
    return _in_folder(hub_cache.snapshot_of(path) if hub_cache.is_cached_repository(path) else path)


def may_be_network(path: Path) -> bool:
    """Return whether a file's name, or its first bytes, say that it holds a network that is read."""
    return bool(_networks([path.name]) or _networks_by_content(path.parent, [path.name]))


def _of_the_hub(source: str) -> Located:
    path = hub_cache.cached_path(source)
    if path.is_file():
        return Located(folder_member(path.parent, path.name), tuple(declarations(path)))
    located = _in_folder(path) if path.is_dir() else None
    if located is None:
        raise hub_cache.without_weights(source, path)
    return located


def _in_folder(folder: Path) -> Located | None:
    with source_errors(folder):
        names = sorted(x.name for x in folder.iterdir() if x.is_file() and x.name[0] != ".")
    if MLMODEL in names:
        return _of_mlflow(folder)
    if "index.jsonl" in names or {"index.json", "weights.safetensors"} <= {*names}:
        return None  # a zoo: many networks, each with a name of its own
    networks = _networks(names) or _networks_by_content(folder, names)
    published = [row for row in (_present(row, networks) for row in _PUBLISHED) if row]
    indexes = [name for name in networks if name.endswith(INDEX)]
    only_index = indexes if len(indexes) == 1 else []
    candidates = [row[0] for row in published] or only_index or networks
    indices = [name for name in networks if name.endswith(INDEX)]
    if len(indices) > 1 or len(candidates) > 1:
        raise _several(folder, candidates if len(candidates) > 1 else indices)
    inside = _networks_in_folders(folder)
    if not candidates:
        if form := foreign_form(folder):
            raise form.error(folder)
        if cached := hub_cache.repositories_in(folder):
            raise _several(folder, cached)
        if inside:
            raise SourceError(
                folder,
                f"no network lies in it itself, only below it ({_some(inside)})",
                "one is needed",
                "name one of these",
            )
        _require_no_foreign_file(folder, names)
        return None
    others = [name for name in (*networks, *inside) if name != candidates[0]]
    notes = (f"read from {candidates[0]}; not from {_some(others)}",) if others else ()
    path = folder_member(folder, candidates[0])
    return Located(path, (*declarations(path), *notes))


def _of_mlflow(folder: Path) -> Located:
    place, library = network_place(folder, read_mlmodel(folder_member(folder, MLMODEL)))
    path = folder_member(folder, place.rstrip("/"))
    located = _in_folder(path) if path.is_dir() else Located(require_file(path))
    if located is None:
        raise SourceError(
            path,
            f"no file of a network is in it (MLflow's {library})",
            "the folder of an MLflow model with all its files is needed",
            "download the folder again",
        )
    folder_member(folder, located.path.relative_to(folder).as_posix())
    return Located(located.path, (f"declared as a model of {library} (MLflow)", *located.notes))


def _networks(names: list[str]) -> list[str]:
    """Return the names that a file of a network may have."""
    return [x for x in names if x.lower().endswith(_FORMS) and not _NO_NETWORK.fullmatch(x)]


def _networks_by_content(folder: Path, names: list[str]) -> list[str]:
    """Return the files whose first bytes say that they are one, where no name does."""
    paths = [folder / name for name in names[:_MOST_FILES] if not _NO_NETWORK.fullmatch(name)]
    own = [path for path in paths if foreign_form(path) is None]
    return [path.name for path in own if content_form(path) or holds_onnx(path)]


def _present(row: tuple[str, ...], names: list[str]) -> list[str]:
    return [name for name in row if name in names]


def _networks_in_folders(folder: Path) -> list[str]:
    """Return the files of networks in the folders right below, as `unet/model.safetensors`."""
    found = []
    with source_errors(folder):
        for path in _folders(folder):
            names = sorted(x.name for x in path.iterdir() if x.is_file())
            found += [f"{path.name}/{name}" for name in _networks(names)]
    return found


def _folders(folder: Path) -> list[Path]:
    below = sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))
    return below[:_MOST_FOLDERS]


def _require_no_foreign_file(folder: Path, names: list[str]) -> None:
    """Raise `SourceError` where a file or folder in a folder is of a form that is not read."""
    for name in (*names[:_MOST_FILES], *(path.name for path in _folders(folder))):
        if form := foreign_form(folder / name):
            raise form.error(folder / name)


def _several(folder: Path, names: list[str]) -> SourceError:
    return SourceError(
        folder,
        f"it holds several networks ({_some(names)})",
        "one is needed",
        "name one of these",
    )


def _some(names: list[str]) -> str:
    further = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + further
