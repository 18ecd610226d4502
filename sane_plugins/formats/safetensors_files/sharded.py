"""Networks in several safetensors files, with an index that maps each tensor to its file.

The `safetensors` library reads single files only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import require_file, source_errors
from sane_plugins.formats.in_folders.folder_members import stays_inside
from sane_plugins.formats.limits import parse_json, require_json_size, require_tensor_count
from sane_plugins.formats.safetensors_files.artifact import HEADER, require_network
from sane_plugins.formats.safetensors_files.lazy_tensors import LazyTensors
from sane_plugins.formats.safetensors_files.networks import parse_network_entry, to_graph
from sane_plugins.formats.suffixes import CHECKPOINT_INDEX, INDEX
from sane_plugins.weights import WeightGraph

MAX_SHARDS = 2_000  # all of them stay open
_MAX_FILE_NAME = 255  # no file system takes a longer one


def open_index(path: Path) -> WeightGraph:
    """Open the network of an index and its shards; tensors are read one at a time.

    Raises `SourceError` for a shard or tensor that is missing, given twice, or outside the index's folder.
    """
    weight_map, network_entry = read_index(path)
    require_tensor_count(path, len(weight_map))
    by_shard = keys_by_shard(path, weight_map)
    file_of: dict[str, LazyTensors] = {}
    files = []
    for name in by_shard:
        file = LazyTensors(shard_path(path, name))
        files.append(file)
        require_network(file.path, file.metadata)
        require_tensor_count(path, len(file_of) + len(file.entries))
        for key in file.entries:
            if key in file_of:
                raise index_error(
                    path,
                    f"'{key}' is in two files ({file_of[key].path.name} and {name})",
                    "each tensor belongs in one",
                )
            file_of[key] = file
        if missing := [key for key in by_shard[name] if key not in file.entries]:
            raise index_error(path, f"'{missing[0]}' is not in {name}", "the index says so")
    extra = [key for key in file_of if key not in weight_map]
    notes = (f"{len(extra)} tensors are in its files though not in the index",) if extra else ()
    tensors = _Shards(file_of)
    with source_errors(path):
        entry = parse_network_entry(path, network_entry, [*tensors])
        return to_graph(files, tensors, path, entry, notes)


def keys_by_shard(index: Path, weight_map: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of tensors by the file that an index says has them, in the order of the files."""
    by_shard: dict[str, list[str]] = {name: [] for name in sorted({*weight_map.values()})}
    for key, name in weight_map.items():
        by_shard[name].append(key)
    if len(by_shard) > MAX_SHARDS:
        found = f"it names {len(by_shard)} files"
        raise index_error(index, found, f"at most {MAX_SHARDS} are read")
    return by_shard


def shard_names(path: Path) -> list[str]:
    """Return the plain names in an index; none if it is no index or broken, since reading it reports that."""
    if not path.name.endswith((INDEX, CHECKPOINT_INDEX)):
        return []
    try:
        require_json_size(path, path.stat().st_size)
        names = parse_json(path, path.read_bytes())["weight_map"].values()
        return [name for name in names if isinstance(name, str) and Path(name).name == name]
    except (SourceError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


class _Shards(Mapping[str, torch.Tensor]):
    """Tensors of several files, read on access."""

    def __init__(self, file_of: Mapping[str, LazyTensors]) -> None:
        self._file_of = {key: file for key, file in file_of.items() if key in file}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._file_of[key][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def read_index(path: Path) -> tuple[dict[str, str], str]:
    """Return the map from tensor to file, and the entry that `save_sharded` wrote for the network."""
    with source_errors(path, "it is no index of safetensors files", "one with a weight_map"):
        require_json_size(path, path.stat().st_size)
        index = parse_json(path, path.read_bytes())
        weight_map: dict[str, str] = index["weight_map"]
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("names are text")
        entry = (index.get("metadata") or {}).get(HEADER)
        return weight_map, entry if isinstance(entry, str) else "{}"


def shard_path(index: Path, name: str) -> Path:
    """Return the path of a shard: beside the index, or in the blobs of a Hugging Face cache."""
    is_plain = Path(name).name == name and not {"/", "\\", "\0", ":"} & {*name}
    if not is_plain or name in ("", ".", "..") or len(name) > _MAX_FILE_NAME:
        raise index_error(
            index, f"it names {ascii(name)[:80]}", "the plain names of files beside it are read"
        )
    path = index.parent / name
    with source_errors(path):
        is_inside = stays_inside(path)
    if not is_inside:
        raise index_error(
            index, f"its file '{name}' leads out of its folder", "its files lie beside it"
        )
    return require_file(path)


def index_error(path: Path, found: str, needed: str) -> SourceError:
    """Return the error for an index that does not fit its files."""
    return SourceError(path, found, needed, "download the folder again")
