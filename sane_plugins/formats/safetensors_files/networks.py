"""Networks in safetensors files: shapes and types come from the header, values are read on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from sane_plugins.formats.dequantize import Content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import parse_json, require_names, require_tensor_count
from sane_plugins.formats.safetensors_files.artifact import HEADER, require_network
from sane_plugins.formats.safetensors_files.lazy_tensors import HeaderEntry, LazyTensors
from sane_plugins.formats.safetensors_files.told_layers import with_told_layers
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.weights import WeightGraph, natural_key


def open_safetensors(path: Path) -> WeightGraph:
    """Open one file. Raises `SourceError` where it is broken or holds another kind of artefact."""
    stored = LazyTensors(path)
    require_network(path, stored.metadata)
    with source_errors(path):
        entry = parse_network_entry(path, stored.metadata.get(HEADER, "{}"), [*stored])
        return to_graph([stored], stored, path, entry)


def to_graph(
    files: Sequence[LazyTensors],
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    network_entry: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> WeightGraph:
    """Return the network of one or several files, in the order of `network_entry` or of the files.

    Its ties are believed where the files hold the same values under both names: nothing is hidden.
    """
    file_of = {key: file for file in files for key in file.entries}
    require_tensor_count(path, len(file_of), sum(file.size for file in files))
    require_names(path, file_of)
    entries = {key: file.entries[key] for key, file in file_of.items()}
    keys = network_entry["keys"] if network_entry else [*tensors]
    if not network_entry and all(_is_sorted(file.entries) for file in files):
        keys = sorted(keys, key=natural_key)
        notes += ("layers come in the order of their names: the file does not keep their own",)
    told = network_entry.get("ties", {})
    ties = {alias: owner for alias, owner in told.items() if _is_tie(file_of, told, alias, owner)}
    if wrong := len(told) - len(ties):
        notes += (
            f"{wrong} of the ties in its metadata are none: those tensors are read as their own",
        )
    ties |= _aliases(path, files, file_of)
    if network_entry:
        tensors = _InOrder(tensors, keys)  # written again, the network gives the same bytes
    content = Content(
        tensors=tensors,
        described={k: (entries[k].shape, e) for k in keys if (e := entries[k].dtype)},
        unread={
            key: (prod(entry.shape), f"{entry.dtype_name} values cannot be read")
            for key, entry in entries.items()
            if entry.dtype is None
        },
    )
    graph = from_state_dict(
        tensors,
        str(path),
        container="safetensors",
        ties=ties,
        axes=_valid_axes(network_entry.get("axes", {}), entries) if network_entry else None,
        notes=notes,
        content=content,
    )
    layers = network_entry.get("layers")
    return with_told_layers(path, graph, layers) if isinstance(layers, list) else graph


class _InOrder(Mapping[str, torch.Tensor]):
    """Tensors in the order of their network, which is not that of their places in a file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], keys: Sequence[str]) -> None:
        self._tensors, self._keys = tensors, dict.fromkeys(keys)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _valid_axes(axes: Mapping[str, object], entries: Mapping[str, HeaderEntry]) -> dict[str, int]:
    """Return the axes that exist in their tensors."""
    ranks = {key: len(entries[key].shape) for key in axes}
    return {k: a for k, a in axes.items() if type(a) is int and 0 <= a < ranks[k]}


def _is_tie(
    file_of: Mapping[str, LazyTensors], ties: Mapping[str, str], alias: str, owner: str
) -> bool:
    """Return whether two names share a tensor: the owner is none's alias, and the values are the same."""
    return owner not in ties and file_of[alias].same_values(alias, file_of[owner], owner)


def _aliases(
    path: Path, files: Sequence[LazyTensors], file_of: Mapping[str, LazyTensors]
) -> dict[str, str]:
    """Return the names that `safetensors.torch.save_model` left out, each with the one that it kept.

    Its metadata hold one entry for each: of tensors that share their memory, it writes one.
    """
    told = [pair for file in files for pair in file.metadata.items()]
    aliases = {
        alias: kept
        for alias, kept in told
        if kept in file_of and alias not in file_of and alias not in (HEADER, "format")
    }
    require_tensor_count(path, len(file_of) + len(aliases), sum(file.size for file in files))
    require_names(path, aliases)
    return aliases


def parse_network_entry(path: Path, text: str, keys: list[str]) -> dict[str, Any]:
    """Parse the metadata entry of `save_safetensors`; empty where it does not match the tensors.

    Raises `SourceError` where it exceeds the limits of JSON.
    """
    try:
        entry = parse_json(path, text.encode())
        fits = isinstance(entry["keys"], list) and sorted(entry["keys"]) == sorted(keys)
        fits = fits and {*entry["ties"].values()} <= {*keys}
        fits = fits and entry["ties"].keys() <= {*keys} and entry.get("axes", {}).keys() <= {*keys}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return entry if fits else {}


def _is_sorted(entries: Mapping[str, HeaderEntry]) -> bool:
    """Return whether tensors are ordered as the safetensors library sorts them: by type, then by name.

    Any other order is the writer's, usually that of the network's layers.
    """
    names: dict[str, list[str]] = {}
    for key, entry in entries.items():
        names.setdefault(entry.dtype_name, []).append(key)
    return all(keys == sorted(keys) for keys in names.values())
