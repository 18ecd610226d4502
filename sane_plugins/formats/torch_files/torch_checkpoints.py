"""Torch checkpoints without pickled code: the largest state dict nested anywhere in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any, TypeVar

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.dequantize import describe_content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import NAME, expanded_bytes, require_names, require_tensor_count
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.formats.torch_files.checkpoint_limits import (
    SAVE_HINT,
    pickled_objects_error,
    vet_legacy,
    vet_zip,
)
from sane_plugins.formats.torch_files.torchscript import open_script
from sane_plugins.weights import WeightGraph

MAX_NESTING_DEPTH = 100  # of mappings and lists

_ZIP_MAGIC, _PICKLE_MAGIC = b"PK", b"\x80"
_OPTIMIZER_KEYS = {"state", "param_groups"}  # of torch.optim's state dicts
_loading = Lock()  # torch keeps the sparse tensors of all loads in one list
_Part = TypeVar("_Part")
_KeyPath = tuple[str, ...]
_FoundStateDict = tuple[_KeyPath, dict[str, torch.Tensor]]


def open_checkpoint(path: Path) -> WeightGraph:
    """Read a TorchScript archive's tensors, or a checkpoint's largest mapping from names to tensors.

    Notes say where it was found and what was not read. Raises `SourceError` for a file that is damaged, holds
    code or holds no such mapping.
    """
    with source_errors(path), path.open("rb") as file:
        magic = file.read(2)
    if not magic.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        raise SourceError(
            path,
            "this is no torch checkpoint",
            "a file written by torch.save is needed",
            "check that the download is complete and the suffix is right",
        )
    if magic != _ZIP_MAGIC:
        vet_legacy(path)
        return _largest_network(path, _unpickle(path, use_mmap=False))
    archive = Archive(path)
    content = _find_pickle(archive)
    if content.removesuffix("data.pkl") + "constants.pkl" in archive.members:
        return open_script(path, archive, content)
    vet_zip(path, archive, content)
    # Only uncompressed members can be mapped; a tensor is then read when it is used.
    return _largest_network(path, _unpickle(path, use_mmap=archive.stored))


def _find_pickle(archive: Archive) -> str:
    """Return the name of the pickle in the archive's single top-level folder."""
    names = [name for name in archive.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(names) != 1:
        raise SourceError(
            archive.path,
            "it is a zip archive of something else",
            "a checkpoint is needed",
            "name a file that torch.save or torch.jit.save wrote",
        )
    return names[0]


def _largest_network(path: Path, content: Any) -> WeightGraph:
    with source_errors(path):
        state_dicts, ignored = _state_dicts(path, content)
    if not state_dicts:
        raise SourceError(
            path,
            "no mapping from names to tensors was found",
            "a state dict is needed",
            "save one with torch.save(module.state_dict(), path)",
        )
    best = max(state_dicts, key=_weight_count)
    key_path, tensors = best
    # DataParallel puts its own attribute before every key.
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    notes: tuple[str, ...] = (f"read from '{'.'.join(key_path)}'",) if key_path else ()
    others = [other for other in state_dicts if other is not best and _weight_count(other)]
    if others:
        found = _shortened(others, _label)
        notes += (f"not read: {found}; save what is a network as a file of its own",)
    if ignored:
        notes += (f"the state of its optimiser is left out: {_shortened(ignored, '.'.join)}",)
    with source_errors(path):
        nbytes = path.stat().st_size
        require_tensor_count(path, len(tensors), nbytes)
        require_names(path, tensors)
        content = describe_content(tensors, str(path), valued=True, dense=expanded_bytes(nbytes))
        return from_state_dict(
            tensors, str(path), container="checkpoint", notes=notes, content=content
        )


def _torch_load(path: Path, use_mmap: bool) -> Any:
    # A load that fails midway leaves sparse tensors behind, and the next one would check them too.
    leftovers: list[torch.Tensor] = getattr(torch._utils, "_sparse_tensors_to_validate", [])
    with _loading:
        leftovers.clear()
        try:
            if use_mmap and _is_unicode(path):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        finally:
            leftovers.clear()


def _is_unicode(path: Path) -> bool:
    """Tell whether torch, which maps files by their names in UTF-8, can open a file by its name."""
    return not re.search("[\ud800-\udfff]", str(path))


def _unpickle(path: Path, *, use_mmap: bool) -> Any:
    with source_errors(path, needed="a whole checkpoint"):
        try:
            # Unchecked, out-of-range indices of a sparse tensor would be written to when it is made dense.
            with torch.sparse.check_sparse_tensor_invariants():
                return _torch_load(path, use_mmap)
        except UnpicklingError as error:
            raise _unpickling_error(path, str(error)) from error


def _unpickling_error(path: Path, message: str) -> SourceError:
    match = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if not match:
        return SourceError(
            path,
            "it is broken, or was not written by torch.save",
            "a whole checkpoint of plain tensors is needed",
            f"download it again or, where you trust it, read it with what wrote it and {SAVE_HINT}",
        )
    return pickled_objects_error(path, match[1])


def _state_dicts(path: Path, content: Any) -> tuple[list[_FoundStateDict], list[_KeyPath]]:
    """Return every mapping or list of tensors with its key path, and the key paths of optimiser states.

    An optimiser's state is larger than its network, but it is not a network.
    """
    state_dicts: list[_FoundStateDict] = []
    ignored: list[_KeyPath] = []
    seen: set[int] = set()
    pending: list[tuple[_KeyPath, Any]] = [
        ((), {"0": content} if torch.is_tensor(content) else content)
    ]
    while pending:
        key_path, part = pending.pop()
        if id(part) in seen or not isinstance(part, Mapping | list | tuple):
            continue
        seen.add(id(part))
        if len(key_path) > MAX_NESTING_DEPTH:
            raise SourceError(
                path,
                f"its content is nested more than {MAX_NESTING_DEPTH} deep",
                "a state dict is needed",
                "save one with torch.save(module.state_dict(), path)",
            )
        if _is_optimizer(key_path, part):
            ignored += [key_path] if key_path else []
            continue
        entries = _entries(part)
        tensors = {key: value for key, value in entries.items() if torch.is_tensor(value)}
        if tensors:
            packed = dict(_tuple_tensors(path, entries))
            seen |= {id(value) for key, value in entries.items() if f"{key}.0" in packed}
            state_dicts.append((key_path, {**tensors, **packed}))
        pending += [((*key_path, key), value) for key, value in reversed(entries.items())]
    return state_dicts, ignored


def _entries(part: Any) -> dict[str, Any]:
    """Return the entries of a mapping or list, by name or index."""
    pairs = part.items() if isinstance(part, Mapping) else enumerate(part)
    return {str(key): value for key, value in pairs if isinstance(key, str | int)}


def _tuple_tensors(path: Path, entries: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors inside tuples, in which quantised layers keep their weight and bias."""
    count = 0
    for key, value in entries.items():
        if isinstance(value, Sequence) and len(value) and torch.is_tensor(value[0]):
            require_names(path, [key])
            count += len(value)
            require_tensor_count(path, count)  # one tuple may be there under many names
            yield from ((f"{key}.{i}", x) for i, x in enumerate(value) if torch.is_tensor(x))


def _is_optimizer(key_path: _KeyPath, part: Any) -> bool:
    has_optimizer_name = bool(key_path) and key_path[-1].lower().startswith("optim")
    return has_optimizer_name or (isinstance(part, Mapping) and part.keys() >= _OPTIMIZER_KEYS)


def _weight_count(state_dict: _FoundStateDict) -> int:
    tensors = state_dict[1].values()
    return sum(t.numel() for t in tensors if t.is_floating_point() or t.is_quantized)


def _shortened(parts: list[_Part], name: Callable[[_Part], str]) -> str:
    """Name the first few parts of a file."""
    names = [text if len(text := name(part)) <= NAME else f"{text[:NAME]}..." for part in parts[:8]]
    return ", ".join(names) + f" and {len(parts) - 8} more" * (len(parts) > 8)


def _label(state_dict: _FoundStateDict) -> str:
    key_path, tensors = state_dict
    keys = [*islice(tensors, 3)] + ["..."] * (len(tensors) > 3)
    return f"'{'.'.join(key_path)}'" if key_path else ", ".join(f"'{key}'" for key in keys)
