"""Save networks atomically: temporary file, then rename; each file is written once."""

from __future__ import annotations

import functools
import glob
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save, save_file

from sane_plugins.atomic_files import write_all
from sane_plugins.errors import SourceError
from sane_plugins.formats.safetensors_files.artifact import HEADER
from sane_plugins.formats.safetensors_files.told_layers import describe_untold_layers
from sane_plugins.formats.suffixes import CHECKPOINTS, EXPORTED, INDEX, SCRIPTS
from sane_plugins.weights import StoredState, WeightGraph

SHARD = 5 * 10**9  # maximum bytes of tensors per file of a sharded network
_SHARD_PATTERN = f"-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors"

_FILE_CONTAINERS = {"module", "safetensors", "checkpoint", "torchscript", "exported", "npz"}

Metadata = Mapping[str, object]


def save_network(graph: WeightGraph, path: Path, metadata: Metadata | None = None) -> Path | None:
    """Save a network in the format of the suffix; None for a suffix that is not ours."""
    file_format = _format_of(path)
    return file_format.save(graph, path, metadata) if file_format else None


def check_save(graph: WeightGraph, path: Path) -> bool | None:
    """Raise what `save_network` would raise because of the network; None for a suffix that is not ours.

    Nothing is written.
    """
    file_format = _format_of(path)
    if file_format is None:
        return None
    _require_complete(graph, path)
    dtypes = {param.key: param.dtype for param in graph.params}
    state = graph.stored_state()
    for key in _keys(state):
        name = state.ties.get(key, key)
        dtype = dtypes[name] if name in dtypes else state.tensors[name].dtype
        file_format.try_on(path, key, torch.empty(0, dtype=dtype))
    return True


def sidecar(path: Path) -> Path:
    """Return the path of the metadata of a file whose format has no room for them."""
    return path.with_name(f"{path.name}.provenance.json")


def side_files(path: Path) -> list[Path] | None:
    """Return the files that saving may write or leave beside `path`; None for a suffix that is not ours."""
    if _format_of(path) is None:
        return None
    if path.suffix == ".safetensors":
        return []  # it has room for metadata
    stem = glob.escape(path.name.removesuffix(INDEX))
    shards = path.parent.glob(f"{stem}{_SHARD_PATTERN}") if path.name.endswith(INDEX) else []
    return [*sorted(shards), sidecar(path)]


def sidecar_writes(path: Path, metadata: Metadata | None) -> dict[Path, Callable[[Path], object]]:
    """Return the write of a file's sidecar for `write_all`; empty without metadata."""
    if metadata is None:
        return {}
    text = json.dumps(metadata, default=str) + "\n"
    return {sidecar(path): lambda partial: partial.write_text(text, encoding="utf-8")}


def save_safetensors(
    graph: WeightGraph, path: str | Path, metadata: Metadata | None = None
) -> Path:
    """Write every tensor, with the order of keys, ties and output axes, and metadata; `open_file` reads it.

    A tied tensor is written under each of its names, so that any reader finds all of them. Raises
    `SourceError` for a type that the format does not support.
    """
    path = Path(path)
    _require_complete(graph, path)
    stored = graph.stored_state()
    state = _with_separate_memory(_all_tensors(stored))
    # One entry, because the format writes several in arbitrary order: same network, same bytes.
    network_entry = _network_entry(graph, stored, list(state))
    entries = {
        HEADER: json.dumps({**network_entry, **(metadata or {}), **network_entry}, default=str)
    }
    write_all({path: lambda partial: _save_file(path, state, partial, entries)})
    return path


def save_sharded(
    graph: WeightGraph,
    path: str | Path,
    metadata: Metadata | None = None,
    limit: int = SHARD,
) -> Path:
    """Write an index `NAME.safetensors.index.json`, and shards of at most `limit` bytes beside it.

    One file's tensors are in memory at a time; a tensor larger than the limit has a file of its own. All are
    renamed at the end, the index after the shards.
    """
    path = Path(path)
    _require_complete(graph, path)
    stored = graph.stored_state()
    shards, total = _shards(graph, stored, limit)
    stem = path.name.removesuffix(INDEX)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    network_entry = _network_entry(graph, stored, [key for keys in shards for key in keys])
    index = {
        "metadata": {"total_size": total, HEADER: json.dumps(network_entry)},
        "weight_map": {key: name for name, keys in zip(names, shards, strict=True) for key in keys},
    }

    def write(keys: list[str], partial: Path) -> None:
        state = _with_separate_memory({key: _resolve_tensor(stored, key) for key in keys})
        _save_file(path, state, partial, {"format": "pt"})

    parts = zip(names, shards, strict=True)
    writes = {path.with_name(name): functools.partial(write, keys) for name, keys in parts}
    text = json.dumps(index, indent=2) + "\n"
    index_write = {path: lambda partial: partial.write_text(text)}
    write_all({**writes, **index_write, **sidecar_writes(path, metadata)})
    return path


def save_arrays(graph: WeightGraph, path: str | Path, metadata: Metadata | None = None) -> Path:
    """Write an `.npz` file for `numpy.load`, one array at a time; tied tensors appear under every name.

    Raises `SourceError` for a type that NumPy does not support.
    """
    path = Path(path)
    _require_complete(graph, path)
    stored = graph.stored_state()

    def write(partial: Path) -> None:
        with ZipFile(partial, "w") as archive:
            for key in _keys(stored):
                array = _to_numpy(path, key, _resolve_tensor(stored, key))
                # A fixed date: same network, same bytes.
                with archive.open(ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_all({path: write, **sidecar_writes(path, metadata)})
    return path


def save_checkpoint(graph: WeightGraph, path: str | Path, metadata: Metadata | None = None) -> Path:
    """Write a plain state dict with torch.save; ties are kept."""
    path = Path(path)
    _require_complete(graph, path)
    state = _all_tensors(graph.stored_state())
    write = {path: lambda partial: torch.save(state, partial)}
    write_all({**write, **sidecar_writes(path, metadata)})
    return path


@dataclass(frozen=True)
class _Format:
    """How a network is saved, and a check that raises where the format does not support a tensor's type."""

    save: Callable[[WeightGraph, Path, Metadata | None], Path]
    try_on: Callable[[Path, str, torch.Tensor], object]


def _format_of(path: Path) -> _Format | None:
    """Return the format of a suffix. Raises `SourceError` for an archive of a program."""
    if path.suffix in SCRIPTS + EXPORTED:
        raise _program_error(path)
    if path.name.endswith(INDEX):
        return _Format(save_sharded, _require_safetensors_type)
    formats = {
        ".safetensors": _Format(save_safetensors, _require_safetensors_type),
        ".npz": _Format(save_arrays, _to_numpy),
        **dict.fromkeys(CHECKPOINTS, _Format(save_checkpoint, lambda *_: None)),
    }
    return formats.get(path.suffix)


def _program_error(path: Path) -> SourceError:
    kind = "an archive of torch.export" if path.suffix in EXPORTED else "a TorchScript archive"
    return SourceError(
        path,
        f"{kind} holds a program",
        "weights alone do not make one",
        "write a .safetensors or .pt file, and load it into the module",
    )


def _require_complete(graph: WeightGraph, path: Path) -> None:
    """Raise `SourceError` where a tensor of the source file was not read and would be lost silently."""
    unread = [
        key
        for key in graph.missed
        if key in graph.untouched  # another network of the file is no part of this one
        and key not in graph.tensors
        and graph.container in _FILE_CONTAINERS
    ]
    if unread:
        raise SourceError(
            path,
            f"'{unread[0]}' of {graph.source} could not be read ({graph.untouched[unread[0]]})",
            "a whole network is written",
            "convert it to a type that is read first",
        )


def _network_entry(graph: WeightGraph, state: StoredState, keys: list[str]) -> dict[str, object]:
    """Return the metadata that tensors alone do not carry: key order, ties, output axes, untold layers."""
    axes = {
        key: param.axis
        for param in graph.params
        if param.axis and (key := state.main_names.get(param.key, param.key)) in state.tensors
    }
    untold = describe_untold_layers(graph)
    return {"keys": keys, "ties": dict(state.ties), "axes": axes, **untold}


def _save_file(
    path: Path, state: dict[str, torch.Tensor], partial: Path, entries: dict[str, str]
) -> None:
    try:
        save_file(state, partial, metadata=entries)
    except KeyError as error:
        raise _unknown_type(path, error.args[0]) from error


def _require_safetensors_type(path: Path, key: str, tensor: torch.Tensor) -> None:
    try:
        save({key: tensor})
    except KeyError as error:
        raise _unknown_type(path, error.args[0]) from error


def _unknown_type(path: Path, dtype: object) -> SourceError:
    return SourceError(
        path, f"a tensor has the type {dtype}", "safetensors does not know it", "write a .pt file"
    )


def _keys(state: StoredState) -> list[str]:
    return list(dict.fromkeys([*state.tensors, *state.ties]))


def _all_tensors(state: StoredState) -> dict[str, torch.Tensor]:
    return {key: _resolve_tensor(state, key) for key in _keys(state)}


def _resolve_tensor(state: StoredState, key: str) -> torch.Tensor:
    return state.tensors[state.ties.get(key, key)]


def _shards(graph: WeightGraph, state: StoredState, limit: int) -> tuple[list[list[str]], int]:
    """Return the keys of each shard, filled in order, and the total number of bytes."""
    shards: list[list[str]] = [[]]
    filled = total = 0
    for key, size in _sizes(graph, state):
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled, total = filled + size, total + size
    return shards, total


def _sizes(graph: WeightGraph, state: StoredState) -> Iterator[tuple[str, int]]:
    """Yield the size of each tensor in bytes; only tensors that no layer owns are read for it."""
    sizes = {param.key: param.size * param.dtype.itemsize for param in graph.params}
    for key in _keys(state):
        name = state.ties.get(key, key)
        yield key, sizes[name] if name in sizes else state.tensors[name].nbytes


def _to_numpy(path: Path, key: str, tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except (TypeError, RuntimeError) as error:
        raise SourceError(
            path,
            f"'{key}' has the type {tensor.dtype}",
            "NumPy does not know it",
            "write a .safetensors file",
        ) from error


def _with_separate_memory(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU with no memory shared between them, as the format demands."""
    seen: set[int] = set()
    separate: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate
