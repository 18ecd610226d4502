"""Torch checkpoints without pickled code: the largest state dict nested anywhere in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.archives import Archive
from sane_plugins.formats.dequantize import count_weights, describe_content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import NAME, expanded_bytes, require_names, require_tensor_count
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.formats.torch_files.checkpoint_files import (
    Checkpoint,
    read_archive,
    read_pickles,
)
from sane_plugins.formats.torch_files.torchscript import find_pickle
from sane_plugins.weights import WeightGraph, memory_key

MAX_NESTING_DEPTH = 100  # of mappings and lists

_CODES = "qdata"  # torchao's name of the values that a scale is for
_OPTIMIZER_KEYS = {"state", "param_groups"}  # of torch.optim's state dicts
_LIGHTNING_VERSION = "pytorch-lightning_version"  # in each checkpoint of Lightning, as these may be
_LIGHTNING_RECORDS = ("callbacks", "loops", "lr_schedulers", "hyper_parameters")
_Part = TypeVar("_Part")
_KeyPath = tuple[str, ...]
_FoundStateDict = tuple[_KeyPath, dict[str, torch.Tensor]]


def open_archive(path: Path, archive: Archive, name: str) -> WeightGraph:
    """Read a zip checkpoint's largest mapping from names to tensors; `name` is that of its pickle.

    Notes say where it was found and what was not read. Raises `SourceError` for a file that is damaged or
    holds no such mapping.
    """
    return _largest_network(path, read_archive(path, archive, name))


def open_pickles(path: Path) -> WeightGraph:
    """Read a checkpoint of the form before zip files, as `open_archive` does."""
    with source_errors(path), path.open("rb") as file:
        return _largest_network(path, read_pickles(path, file, path.stat().st_size))


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's largest mapping. Raises `SourceError` as `open_archive` does."""
    with source_errors(path), path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
        if not is_archive:
            file.seek(0)
            checkpoint = read_pickles(path, file, path.stat().st_size)
    if is_archive:
        archive = Archive(path)
        name = find_pickle(archive)
        if name is None:
            raise _empty_error(path, ())
        checkpoint = read_archive(path, archive, name)
    with source_errors(path):
        state_dicts, _ = _state_dicts(path, checkpoint.content)
    if not state_dicts:
        raise _empty_error(path, checkpoint.classes)
    return _largest(state_dicts)[1]


def _largest_network(path: Path, checkpoint: Checkpoint) -> WeightGraph:
    with source_errors(path):
        state_dicts, ignored = _state_dicts(path, checkpoint.content)
    if not state_dicts:
        raise _empty_error(path, checkpoint.classes)
    with source_errors(path):
        best = _largest(state_dicts)
        apart = _weights_apart(best, state_dicts) if len(state_dicts) > 1 else {}
    key_path, tensors = best
    notes: tuple[str, ...] = (f"read from '{'.'.join(key_path)}'",) if key_path else ()
    others = [other for other in state_dicts if other is not best and _weight_count(other[1])]
    if others:
        found = _shortened(others, _label)
        notes += (f"not read: {found}; save what is a network as a file of its own",)
    if ignored:
        notes += (f"the state of its optimiser is left out: {_shortened(ignored, '.'.join)}",)
    if checkpoint.classes:
        notes += (f"its classes were not imported: {_shortened([*checkpoint.classes], str)}",)
    with source_errors(path):
        nbytes = path.stat().st_size
        require_tensor_count(path, len(tensors), nbytes)
        require_names(path, tensors)
        content = describe_content(tensors, str(path), valued=True, dense=expanded_bytes(nbytes))
        graph = from_state_dict(
            tensors, str(path), container="checkpoint", notes=notes, content=content
        )
        return replace(graph, missed={**graph.missed, **apart})


def _empty_error(path: Path, classes: tuple[str, ...]) -> SourceError:
    held = f" beside pickled objects ({_shortened([*classes], str)})" if classes else ""
    return SourceError(
        path,
        f"no mapping from names to tensors was found{held}",
        "a state dict is needed, and nothing that can run code is imported",
        "save one with torch.save(module.state_dict(), path)",
    )


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
        if _is_training_record(key_path, content):
            continue
        entries = _entries(part)
        tensors = dict(_tensors(entries))
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


def _is_training_record(key_path: _KeyPath, content: Any) -> bool:
    """Tell whether a part is what Lightning's trainer writes of itself: scores, counters, schedules."""
    is_record = len(key_path) == 1 and key_path[0] in _LIGHTNING_RECORDS
    return is_record and isinstance(content, Mapping) and _LIGHTNING_VERSION in content


def _tensors(entries: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a mapping; of those that a class makes of codes and scales, these."""
    for key, value in entries.items():
        if torch.is_tensor(value):
            parts = getattr(value, "parts", {})
            codes = parts.get(_CODES)
            if codes is not None and codes.shape == value.shape:  # not packed
                yield from ((f"{key}.{name}", part) for name, part in parts.items())
            else:
                yield key, value


def _weights_apart(best: _FoundStateDict, state_dicts: list[_FoundStateDict]) -> dict[str, int]:
    """Count the weights of other networks in the file, by their key paths; shared tensors count once.

    A lone number (a loss, the best accuracy) is a record of training, and so is a list of doubles beside a
    network that has none.
    """
    counts: dict[str, int] = {}
    best_path, best_tensors = best
    seen = {memory_key(tensor) for tensor in best_tensors.values()}
    is_double = any(tensor.dtype == torch.float64 for tensor in best_tensors.values())
    for key_path, tensors in state_dicts:
        fresh = {key: x for key, x in tensors.items() if memory_key(x) not in seen}
        seen |= {memory_key(x) for x in fresh.values()}
        if not is_double and key_path == best_path[: len(key_path)]:
            fresh = {k: x for k, x in fresh.items() if x.dim() > 1 or x.dtype != torch.float64}
        if _weight_count({key: x for key, x in fresh.items() if x.numel() > 1}):
            counts[".".join(key_path) or _label(((), fresh))] = _weight_count(fresh)
    return counts


def _largest(state_dicts: list[_FoundStateDict]) -> _FoundStateDict:
    """Return the network that is read: that of most weights, if some of them can be."""
    if len(state_dicts) == 1:
        return state_dicts[0]
    return max(state_dicts, key=lambda found: _rank(found[1]))


def _rank(tensors: Mapping[str, torch.Tensor]) -> tuple[bool, int]:
    """Return whether a network has weights that can be read, and how many it has."""
    read, missed = count_weights(describe_content(tensors, "", valued=True))
    return read > 0, read + missed


def _weight_count(tensors: Mapping[str, torch.Tensor]) -> int:
    return _rank(tensors)[1]


def _shortened(parts: list[_Part], name: Callable[[_Part], str]) -> str:
    """Name the first few parts of a file."""
    names = [text if len(text := name(part)) <= NAME else f"{text[:NAME]}..." for part in parts[:8]]
    return ", ".join(names) + f" and {len(parts) - 8} more" * (len(parts) > 8)


def _label(state_dict: _FoundStateDict) -> str:
    key_path, tensors = state_dict
    keys = [*islice(tensors, 3)] + ["..."] * (len(tensors) > 3)
    return f"'{'.'.join(key_path)}'" if key_path else ", ".join(f"'{key}'" for key in keys)
