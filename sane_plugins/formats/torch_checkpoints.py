"""Torch checkpoints without pickled code: the largest state dict in whatever they nest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.checkpoint_limits import vet_legacy, vet_zip
from sane_plugins.formats.dequantize import describe_content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.formats.torchscript import open_script
from sane_plugins.weights import WeightGraph

DEPTH = 100  # mappings and lists in each other

_ZIP, _PICKLE = b"PK", b"\x80"
_OPTIMIZER = {"state", "param_groups"}  # torch.optim's own form
_SAVE = "save its state dict with safetensors.torch.save_file"
_Place = tuple[str, ...]
_Found = tuple[_Place, dict[str, torch.Tensor]]


def open_checkpoint(path: Path) -> WeightGraph:
    """Read a TorchScript archive's tensors, or a checkpoint's largest mapping from names to tensors.

    Notes name the place, and what was not read. Raises `SourceError` for a file that is damaged, holds code
    or holds no such mapping.
    """
    with source_errors(path), path.open("rb") as file:
        magic = file.read(2)
    if not magic.startswith((_ZIP, _PICKLE)):
        raise SourceError(
            path,
            "this is no torch checkpoint",
            "a file written by torch.save is needed",
            "check that the download is complete and the suffix is right",
        )
    if magic != _ZIP:
        vet_legacy(path)
        return _network(path, _unpickle(path, mapped=False))
    archive = Archive(path)
    content = _pickle_of(archive)
    if content.removesuffix("data.pkl") + "constants.pkl" in archive.members:
        return open_script(path, archive, content)
    vet_zip(path, archive, content)
    # Only what lies in the file as it is can be mapped: then a tensor is read when it is used.
    return _network(path, _unpickle(path, mapped=archive.stored))


def _pickle_of(archive: Archive) -> str:
    """Return the name of the member with the content, in the one folder that torch writes."""
    names = [name for name in archive.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(names) != 1:
        raise SourceError(
            archive.path,
            "it is a zip archive of something else",
            "a checkpoint is needed",
            "name a file that torch.save or torch.jit.save wrote",
        )
    return names[0]


def _network(path: Path, content: Any) -> WeightGraph:
    with source_errors(path):
        found, ignored = _state_dicts(path, content)
    if not found:
        raise SourceError(
            path,
            "no mapping from names to tensors was found",
            "a state dict is needed",
            "save one with torch.save(module.state_dict(), path)",
        )
    best = max(found, key=_size)
    place, tensors = best
    # DataParallel puts its own attribute before every key.
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    notes: tuple[str, ...] = (f"read from '{'.'.join(place)}'",) if place else ()
    others = [_named(other) for other in found if other is not best and _size(other)]
    if others:
        notes += (f"not read: {_few(others)}; save what is a network as a file of its own",)
    if ignored:
        notes += (f"the state of its optimiser is left out: {_few(ignored)}",)
    with source_errors(path):
        content = describe_content(tensors, str(path), valued=True)
        return from_state_dict(
            tensors, str(path), container="checkpoint", notes=notes, content=content
        )


def _torch_load(path: Path, mapped: bool) -> Any:
    # A load that fails midway leaves sparse tensors behind, and the next one would check them too.
    left: list[torch.Tensor] = getattr(torch._utils, "_sparse_tensors_to_validate", [])
    left.clear()
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    finally:
        left.clear()


def _unpickle(path: Path, *, mapped: bool) -> Any:
    with source_errors(path, needed="a whole checkpoint"):
        try:
            # Without the check, places outside a sparse tensor would be written to when it is made dense.
            with torch.sparse.check_sparse_tensor_invariants():
                return _torch_load(path, mapped)
        except UnpicklingError as error:
            raise _refused(path, str(error)) from error


def _refused(path: Path, message: str) -> SourceError:
    named = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if not named:
        return SourceError(
            path,
            "it is broken, or was not written by torch.save",
            "a whole checkpoint of plain tensors is needed",
            f"download it again or, where you trust it, read it with what wrote it and {_SAVE}",
        )
    return SourceError(
        path,
        f"it holds pickled objects ({named[1][:80]}), which can run code",
        "only plain tensors are read",
        f"where you trust the file, read it with torch.load(path, weights_only=False) and {_SAVE}",
    )


def _state_dicts(path: Path, content: Any) -> tuple[list[_Found], list[str]]:
    """Return every mapping or list of tensors with the place it was found at, and optimisers' places.

    An optimiser's state is larger than its network, and none.
    """
    found: list[_Found] = []
    ignored: list[str] = []
    seen: set[int] = set()
    waiting: list[tuple[_Place, Any]] = [
        ((), {"0": content} if torch.is_tensor(content) else content)
    ]
    while waiting:
        place, part = waiting.pop()
        if id(part) in seen or not isinstance(part, Mapping | list | tuple):
            continue
        seen.add(id(part))
        if len(place) > DEPTH:
            raise SourceError(
                path,
                f"its content is nested more than {DEPTH} deep",
                "a state dict is needed",
                "save one with torch.save(module.state_dict(), path)",
            )
        if _is_optimizer(place, part):
            ignored += [".".join(place)] if place else []
            continue
        entries = _entries(part)
        tensors = {key: value for key, value in entries.items() if torch.is_tensor(value)}
        if tensors:
            packed = dict(_packed(entries))
            seen |= {id(value) for key, value in entries.items() if f"{key}.0" in packed}
            found.append((place, {**tensors, **packed}))
        waiting += [((*place, key), value) for key, value in reversed(entries.items())]
    return found, ignored


def _entries(part: Any) -> dict[str, Any]:
    """Return what a mapping or list holds, by name or number."""
    pairs = part.items() if isinstance(part, Mapping) else enumerate(part)
    return {str(key): value for key, value in pairs if isinstance(key, str | int)}


def _packed(entries: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of tuples beside tensors, as quantised layers keep their weight and bias."""
    for key, value in entries.items():
        if isinstance(value, Sequence) and len(value) and torch.is_tensor(value[0]):
            yield from ((f"{key}.{i}", x) for i, x in enumerate(value) if torch.is_tensor(x))


def _is_optimizer(place: _Place, part: Any) -> bool:
    named = bool(place) and place[-1].lower().startswith("optim")
    return named or (isinstance(part, Mapping) and part.keys() >= _OPTIMIZER)


def _size(found: _Found) -> int:
    tensors = found[1].values()
    return sum(t.numel() for t in tensors if t.is_floating_point() or t.is_quantized)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + f" and {len(names) - 8} more" * (len(names) > 8)


def _named(found: _Found) -> str:
    place, tensors = found
    keys = [*tensors][:3] + ["..."] * (len(tensors) > 3)
    return f"'{'.'.join(place)}'" if place else ", ".join(f"'{key}'" for key in keys)
