"""Which files a network is read from, so that none of them is written over."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sane_plugins.formats.safetensors_files.sharded import shard_names
from sane_plugins.weights import WeightGraph


def files_read(graph: WeightGraph) -> list[Path]:
    """Return the files that a graph's tensors are read from: its source, and the files that this names.

    A mapping of tensors that reads further files has them in its attribute `files_read`.
    """
    source = Path(graph.source)
    named = [source.with_name(name) for name in dict.fromkeys(shard_names(source))]
    further = [path for part in _parts(graph.tensors) for path in getattr(part, "files_read", ())]
    return [source, *named, *further]


def _parts(tensors: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings that replaced tensors are layered on."""
    if isinstance(tensors, ChainMap):
        for part in tensors.maps:
            yield from _parts(part)
    else:
        yield tensors
