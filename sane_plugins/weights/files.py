"""Networks from files of tensors, safely: safetensors read on demand, checkpoints without pickled code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sane_plugins.errors import SourceError
from sane_plugins.weights.checkpoints import open_checkpoint
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.statedict import Described, from_state_dict

__all__ = ["CHECKPOINTS", "HEADER", "LazyTensors", "from_state_dict", "open_file", "require_file"]

CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
HEADER = "sane"
_SCRIPTS = (".jit", ".torchscript")


def open_file(path: str | Path) -> WeightGraph | None:
    """Read a `.safetensors` file or a torch checkpoint; None where the suffix is another.

    Raises `SourceError` for a file that is missing, broken, empty of weights, or that holds code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(require_file(path))
    if path.suffix in CHECKPOINTS + _SCRIPTS:
        return open_checkpoint(require_file(path))
    return None


def require_file(path: Path) -> Path:
    """Return the path of a file that exists and holds something; raise `SourceError` otherwise."""
    found = "it does not exist"
    if path.is_dir():
        found = "it is a folder"
    elif path.is_file():
        found = "it is empty" if not path.stat().st_size else ""
    if found:
        raise SourceError(path, found, "a file with weights is needed", "check the path")
    return path


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, read when they are asked for."""

    def __init__(self, path: Path, keys: list[str]) -> None:
        self._path, self._keys = path, dict.fromkeys(keys)
        self._file = safe_open(path, framework="pt")

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._keys:
            raise KeyError(key)
        try:
            return self._file.get_tensor(key)  # type: ignore[no-any-return]
        except SafetensorError as error:
            raise _broken(self._path, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def describe(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return a tensor's shape and type; only its first row is read."""
        part = self._file.get_slice(key)
        shape = tuple(part.get_shape())
        few = part[:1] if shape and shape[0] else self._file.get_tensor(key)
        return shape, few.dtype


def _open_safetensors(path: Path) -> WeightGraph:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        keys = _as_laid_out(path)
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error
    _require_network(path, metadata)
    stored = LazyTensors(path, keys)
    described = {key: stored.describe(key) for key in keys}
    notes: tuple[str, ...] = ()
    told = _told(metadata, keys)
    if told:
        order = told["keys"]
    elif _is_sorted(described):
        order = sorted(keys, key=_natural)
        notes = ("layers come in the order of their names: the file does not keep their own",)
    else:
        order = keys
    return from_state_dict(
        LazyTensors(path, order), str(path), container="safetensors", ties=told.get("ties", {}),
        axes=told.get("axes"), notes=notes, described={key: described[key] for key in order},
    )  # fmt: skip


def _as_laid_out(path: Path) -> list[str]:
    """Return the keys of a file that safetensors accepts, as its tensors follow each other.

    The header is read here because older releases of the library only tell sorted keys.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return sorted(header, key=lambda key: header[key]["data_offsets"])


def _require_network(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise `SourceError` for files of ours that hold something else than a network."""
    known = {
        "sane_heads": "property heads", "sane_embeddings": "embeddings", "sane_run": "interrupted run",
        "sane_model": "SANE",
    }  # fmt: skip
    for header in known.keys() & metadata.keys():
        raise SourceError(
            path, f"it holds our own {known[header]}", "the weights of a network are needed",
            "name another file",
        )  # fmt: skip


def _told(metadata: Mapping[str, str], keys: list[str]) -> dict[str, Any]:
    """Return what `save_safetensors` wrote beside the tensors; nothing where it does not fit them."""
    try:
        told = json.loads(metadata.get(HEADER, "{}"))
        fits = sorted(told["keys"]) == sorted(keys) and {*told["ties"].values()} <= {*keys}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return told if fits else {}


def _is_sorted(described: Described) -> bool:
    """Tell whether the tensors lie as the safetensors library sorts them: by type, then by name.

    Any other order is the writer's, mostly the order of the network's layers.
    """
    names: dict[torch.dtype, list[str]] = {}
    for key, (_, dtype) in described.items():
        names.setdefault(dtype, []).append(key)
    return all(found == sorted(found) for found in names.values())


def _natural(key: str) -> list[tuple[int, str]]:
    """Return a key to sort by that puts layer 10 after layer 2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


def _broken(path: Path, error: Exception) -> SourceError:
    return SourceError(
        path, f"it is no whole safetensors file ({error})", "a complete one is needed",
        "copy or download it again",
    )  # fmt: skip
