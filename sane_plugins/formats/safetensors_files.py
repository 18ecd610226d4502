"""Networks in safetensors files: shapes and types come from the header, values are read on demand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from sane_plugins.formats.artifact import HEADER, require_network
from sane_plugins.formats.dequantize import Content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.lazy_tensors import HeaderEntry, LazyTensors
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.weights import WeightGraph


def open_safetensors(path: Path) -> WeightGraph:
    """Open one file. Raises `SourceError` where it is broken or holds another kind of artefact."""
    stored = LazyTensors(path)
    require_network(path, stored.metadata)
    with source_errors(path):
        return to_graph(
            [stored],
            stored,
            str(path),
            parse_network_entry(stored.metadata.get(HEADER, "{}"), [*stored]),
        )


def to_graph(
    files: Sequence[LazyTensors],
    tensors: Mapping[str, torch.Tensor],
    source: str,
    network_entry: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> WeightGraph:
    """Return the network of one or several files, in the order of `network_entry` or of the files."""
    entries = {key: entry for file in files for key, entry in file.entries.items()}
    keys = network_entry["keys"] if network_entry else [*tensors]
    if not network_entry and all(_is_sorted(file.entries) for file in files):
        keys = sorted(keys, key=natural_key)
        notes += ("layers come in the order of their names: the file does not keep their own",)
    content = Content(
        tensors=tensors,
        described={k: (entries[k].shape, e) for k in keys if (e := entries[k].dtype)},
        unread={
            key: (prod(entry.shape), f"{entry.dtype_name} values cannot be read")
            for key, entry in entries.items()
            if entry.dtype is None
        },
    )
    return from_state_dict(
        tensors,
        source,
        container="safetensors",
        ties=network_entry.get("ties", {}),
        axes=_valid_axes(network_entry.get("axes", {}), entries),
        notes=notes,
        content=content,
    )


def _valid_axes(axes: Mapping[str, object], entries: Mapping[str, HeaderEntry]) -> dict[str, int]:
    """Return the axes that exist in their tensors."""
    ranks = {key: len(entries[key].shape) for key in axes}
    return {k: a for k, a in axes.items() if type(a) is int and -ranks[k] <= a < ranks[k]}


def parse_network_entry(text: str, keys: list[str]) -> dict[str, Any]:
    """Parse the metadata entry of `save_safetensors`; empty where it does not match the tensors."""
    try:
        entry = json.loads(text)
        fits = sorted(entry["keys"]) == sorted(keys) and {*entry["ties"].values()} <= {*keys}
        fits = fits and entry["ties"].keys() <= {*keys} and entry.get("axes", {}).keys() <= {*keys}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
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


def natural_key(key: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 10 after layer 2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]
