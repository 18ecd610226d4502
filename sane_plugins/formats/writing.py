"""Networks into files: beside their place first, then renamed; each file is written once."""

from __future__ import annotations

import functools
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
from sane_plugins.formats.artifact import HEADER
from sane_plugins.formats.suffixes import CHECKPOINTS, INDEX, SCRIPTS
from sane_plugins.weights import WeightGraph

SHARD = 5 * 10**9  # bytes of tensors in one file of several

_FILES = {"safetensors", "checkpoint", "torchscript", "npz"}

Metadata = Mapping[str, object]


def save_network(graph: WeightGraph, path: Path, metadata: Metadata | None = None) -> Path | None:
    """Write a network in the form that the suffix asks for; None for a suffix that is not ours."""
    form = _form(path)
    return form.save(graph, path, metadata) if form else None


def check_save(graph: WeightGraph, path: Path) -> bool | None:
    """Raise what `save_network` would raise because of the network; None for a suffix that is not ours.

    Nothing is written.
    """
    form = _form(path)
    if form is None:
        return None
    _require_whole(graph, path)
    known = {param.key: param.dtype for param in graph.params}
    for key in dict.fromkeys([*graph.tensors, *graph.ties]):
        name = graph.ties.get(key, key)
        dtype = known[name] if name in known else graph.tensors[name].dtype
        form.try_on(path, key, torch.empty(0, dtype=dtype))
    return True


def sidecar(path: Path) -> Path:
    """Return the file that holds the metadata of a file whose form has no room for them."""
    return path.with_name(f"{path.name}.provenance.json")


def sidecar_writes(path: Path, metadata: Metadata | None) -> dict[Path, Callable[[Path], object]]:
    """Return what `write_all` takes to put metadata beside a file; nothing where there are none."""
    if metadata is None:
        return {}
    text = json.dumps(metadata, default=str) + "\n"
    return {sidecar(path): lambda partial: partial.write_text(text, encoding="utf-8")}


def save_safetensors(
    graph: WeightGraph, path: str | Path, metadata: Metadata | None = None
) -> Path:
    """Write every tensor, with the order of keys, ties and output axes, and metadata; `open_file` reads it.

    A tied tensor is written under each of its names, so that any reader finds all of them. Raises
    `SourceError` for a type that the format does not know.
    """
    path = Path(path)
    _require_whole(graph, path)
    state = _apart(graph.state_dict())
    # One entry, because the format writes several in any order: same network, same bytes.
    own = _own(graph, list(state))
    told = {HEADER: json.dumps({**own, **(metadata or {}), **own}, default=str)}
    write_all({path: lambda partial: _save_file(path, state, partial, told)})
    return path


def save_sharded(
    graph: WeightGraph,
    path: str | Path,
    metadata: Metadata | None = None,
    limit: int = SHARD,
) -> Path:
    """Write an index `NAME.safetensors.index.json`, and beside it files of at most `limit` bytes.

    One file's tensors are in memory at a time; a tensor larger than the limit has a file of its own. All are
    renamed at the end, the index last.
    """
    path = Path(path)
    _require_whole(graph, path)
    shards, total = _shards(graph, limit)
    stem = path.name.removesuffix(INDEX)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    own = _own(graph, [key for keys in shards for key in keys])
    index = {
        "metadata": {"total_size": total, HEADER: json.dumps(own)},
        "weight_map": {key: name for name, keys in zip(names, shards, strict=True) for key in keys},
    }

    def write(keys: list[str], partial: Path) -> None:
        state = _apart({key: _tensor(graph, key) for key in keys})
        _save_file(path, state, partial, {"format": "pt"})

    parts = zip(names, shards, strict=True)
    writes = {path.with_name(name): functools.partial(write, keys) for name, keys in parts}
    text = json.dumps(index, indent=2) + "\n"
    index_write = {path: lambda partial: partial.write_text(text)}
    write_all({**writes, **sidecar_writes(path, metadata), **index_write})
    return path


def save_arrays(graph: WeightGraph, path: str | Path, metadata: Metadata | None = None) -> Path:
    """Write an `.npz` file that `numpy.load` reads, one array at a time; the names of ties are all in it.

    Raises `SourceError` for a type that NumPy does not know.
    """
    path = Path(path)
    _require_whole(graph, path)

    def write(partial: Path) -> None:
        with ZipFile(partial, "w") as archive:
            for key in dict.fromkeys([*graph.tensors, *graph.ties]):
                array = _array(path, key, _tensor(graph, key))
                # A fixed date: same network, same bytes.
                with archive.open(ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_all({path: write, **sidecar_writes(path, metadata)})
    return path


def save_checkpoint(graph: WeightGraph, path: str | Path, metadata: Metadata | None = None) -> Path:
    """Write a plain state dict as torch.save does; ties are kept."""
    path = Path(path)
    _require_whole(graph, path)
    write = {path: lambda partial: torch.save(graph.state_dict(), partial)}
    write_all({**write, **sidecar_writes(path, metadata)})
    return path


@dataclass(frozen=True)
class _Form:
    """How a network is saved, and what raises where a form does not know a tensor's type."""

    save: Callable[[WeightGraph, Path, Metadata | None], Path]
    try_on: Callable[[Path, str, torch.Tensor], object]


def _form(path: Path) -> _Form | None:
    """Return the form of a suffix. Raises `SourceError` for a TorchScript archive."""
    if path.suffix in SCRIPTS:
        raise _is_program(path)
    if path.name.endswith(INDEX):
        return _Form(save_sharded, _try_safetensors)
    forms = {
        ".safetensors": _Form(save_safetensors, _try_safetensors),
        ".npz": _Form(save_arrays, _array),
        **dict.fromkeys(CHECKPOINTS, _Form(save_checkpoint, lambda *_: None)),
    }
    return forms.get(path.suffix)


def _is_program(path: Path) -> SourceError:
    return SourceError(
        path,
        "a TorchScript archive holds a program",
        "weights alone do not make one",
        "write a .safetensors or .pt file, and load it into the module",
    )


def _require_whole(graph: WeightGraph, path: Path) -> None:
    """Raise `SourceError` where a file's tensor could not be read, and would be lost without a word."""
    lost = [key for key in graph.missed if key not in graph.tensors and graph.container in _FILES]
    if lost:
        raise SourceError(
            path,
            f"'{lost[0]}' of {graph.source} could not be read ({graph.untouched[lost[0]]})",
            "a whole network is written",
            "convert it to a type that is read first",
        )


def _own(graph: WeightGraph, keys: list[str]) -> dict[str, object]:
    """Return what a file of tensors does not tell: order, ties and output axes."""
    axes = {param.key: param.axis for param in graph.params if param.axis}
    return {"keys": keys, "ties": dict(graph.ties), "axes": axes}


def _save_file(
    path: Path, state: dict[str, torch.Tensor], partial: Path, told: dict[str, str]
) -> None:
    try:
        save_file(state, partial, metadata=told)
    except KeyError as error:
        raise _unknown_type(path, error.args[0]) from error


def _try_safetensors(path: Path, key: str, tensor: torch.Tensor) -> None:
    try:
        save({key: tensor})
    except KeyError as error:
        raise _unknown_type(path, error.args[0]) from error


def _unknown_type(path: Path, dtype: object) -> SourceError:
    return SourceError(
        path, f"a tensor has the type {dtype}", "safetensors does not know it", "write a .pt file"
    )


def _tensor(graph: WeightGraph, key: str) -> torch.Tensor:
    return graph.tensors[graph.ties.get(key, key)]


def _shards(graph: WeightGraph, limit: int) -> tuple[list[list[str]], int]:
    """Return the keys of each file, filled in order, and the number of bytes of all."""
    shards: list[list[str]] = [[]]
    filled = total = 0
    for key, size in _sizes(graph):
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled, total = filled + size, total + size
    return shards, total


def _sizes(graph: WeightGraph) -> Iterator[tuple[str, int]]:
    """Yield the bytes of each tensor; only those that no layer owns are read for it."""
    known = {param.key: param.size * param.dtype.itemsize for param in graph.params}
    for key in dict.fromkeys([*graph.tensors, *graph.ties]):
        name = graph.ties.get(key, key)
        yield key, known[name] if name in known else graph.tensors[name].nbytes


def _array(path: Path, key: str, tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except (TypeError, RuntimeError) as error:
        raise SourceError(
            path,
            f"'{key}' has the type {tensor.dtype}",
            "NumPy does not know it",
            "write a .safetensors file",
        ) from error


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, each with memory of its own, as the format demands."""
    seen: set[int] = set()
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found
