"""Torch checkpoints without pickled code: whatever they nest, the network's tensors are found."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.statedict import from_state_dict

_ZIP, _PICKLE = b"PK", b"\x80"
_OPTIMIZER = {"state", "param_groups"}  # torch.optim's own form
_SAVE = "save its state dict with safetensors.torch.save_file"
_Found = tuple[tuple[str, ...], dict[str, torch.Tensor]]


def open_checkpoint(path: Path) -> WeightGraph:
    """Read the largest mapping from names to tensors; notes name the place, and what was not read.

    Raises `SourceError` for a file that is damaged, holds code or holds no such mapping.
    """
    found = list(_state_dicts(_unpickled(path), ()))
    if not found:
        raise SourceError(
            path, "no mapping from names to tensors was found", "a state dict is needed",
            "save one with torch.save(module.state_dict(), path)",
        )  # fmt: skip
    best = max(found, key=_size)
    place, tensors = best
    # DataParallel puts its own attribute before every key.
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    notes: tuple[str, ...] = (f"read from '{'.'.join(place)}'",) if place else ()
    others = [_named(other) for other in found if other is not best and _size(other)]
    if others:
        notes += (f"not read: {', '.join(others)}; save what is a network as a file of its own",)
    return from_state_dict(tensors, str(path), container="checkpoint", notes=notes)


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        if not magic.startswith((_ZIP, _PICKLE)):
            raise SourceError(
                path, "this is no torch checkpoint", "a file written by torch.save is needed",
                "check that the download is complete and the suffix is right",
            )  # fmt: skip
        _refuse_script(path, magic)
        # Only the zip form can be mapped: then a tensor is read when it is used.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=magic == _ZIP)
    except UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            path, f"it cannot be read ({error.strerror or error})", "the right to read is needed",
            "check the file and its folder",
        ) from error  # fmt: skip
    except Exception as error:  # unpickling damaged bytes may raise anything
        raise SourceError(
            path, "it is broken", "a whole checkpoint is needed", "copy or download it again"
        ) from error


def _refuse_script(path: Path, magic: bytes) -> None:
    """Raise `SourceError` for a TorchScript archive, which only its constants tell apart."""
    if magic == _ZIP:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise SourceError(
                    path, "it is a TorchScript archive", "a checkpoint of plain tensors is needed",
                    f"where you trust the file, read it with torch.jit.load and {_SAVE}",
                )  # fmt: skip


def _refused(path: Path, message: str) -> SourceError:
    named = re.search(r"GLOBAL (\S+) was not an allowed", message)
    if not named:
        return SourceError(
            path, "it is broken, or was not written by torch.save",
            "a whole checkpoint of plain tensors is needed",
            f"download it again or, where you trust it, read it with what wrote it and {_SAVE}",
        )  # fmt: skip
    return SourceError(
        path, f"it holds pickled objects ({named[1]}), which can run code",
        "only plain tensors are read",
        f"where you trust the file, read it with torch.load(path, weights_only=False) and {_SAVE}",
    )  # fmt: skip


def _state_dicts(content: Any, place: tuple[str, ...]) -> Iterator[_Found]:
    """Yield every mapping from names to tensors in nested mappings, with the place it was found at.

    An optimiser's state is larger than its network, and none.
    """
    if not isinstance(content, Mapping) or content.keys() >= _OPTIMIZER:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if torch.is_tensor(value)}
    if tensors:
        yield place, tensors
    for key, value in named.items():
        yield from _state_dicts(value, (*place, key))


def _size(found: _Found) -> int:
    return sum(tensor.numel() for tensor in found[1].values() if tensor.is_floating_point())


def _named(found: _Found) -> str:
    place, tensors = found
    keys = [*tensors][:3] + ["..."] * (len(tensors) > 3)
    return f"'{'.'.join(place)}'" if place else ", ".join(f"'{key}'" for key in keys)
