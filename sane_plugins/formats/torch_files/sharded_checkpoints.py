"""Networks in several torch checkpoints, with an index that maps each tensor to its file."""

from __future__ import annotations

from pathlib import Path

import torch

from sane_plugins.formats.dequantize import describe_content
from sane_plugins.formats.guards import source_errors
from sane_plugins.formats.limits import expanded_bytes, require_names, require_tensor_count
from sane_plugins.formats.safetensors_files.sharded import (
    index_error,
    keys_by_shard,
    read_index,
    shard_path,
)
from sane_plugins.formats.state_dict import from_state_dict
from sane_plugins.formats.torch_files.torch_checkpoints import read_state_dict
from sane_plugins.weights import WeightGraph


def open_checkpoint_index(path: Path) -> WeightGraph:
    """Open the network of an index such as `pytorch_model.bin.index.json`, with all of its files.

    Raises `SourceError` for a file or tensor that is missing, given twice, or outside the index's folder.
    """
    weight_map, _ = read_index(path)
    require_tensor_count(path, len(weight_map))
    tensors: dict[str, torch.Tensor] = {}
    nbytes = 0
    for name, keys in keys_by_shard(path, weight_map).items():
        shard = shard_path(path, name)
        found, nbytes = read_state_dict(shard), nbytes + shard.stat().st_size
        if twice := found.keys() & tensors.keys():
            raise index_error(
                path, f"'{min(twice)}' is in two files, one is {name}", "each tensor belongs in one"
            )
        if missing := [key for key in keys if key not in found]:
            raise index_error(path, f"'{missing[0]}' is not in {name}", "the index says so")
        tensors |= found
        require_tensor_count(path, len(tensors), nbytes)
    extra = len(tensors) - len(weight_map)
    notes = (f"{extra} tensors are in its files though not in the index",) if extra else ()
    with source_errors(path):
        require_names(path, tensors)
        content = describe_content(tensors, str(path), valued=True, dense=expanded_bytes(nbytes))
        return from_state_dict(
            tensors, str(path), container="checkpoint", notes=notes, content=content
        )
