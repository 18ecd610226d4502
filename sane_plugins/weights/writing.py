"""Networks into files: beside their place first, then renamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sane_plugins.errors import SourceError, UsageError
from sane_plugins.weights.files import HEADER
from sane_plugins.weights.graph import WeightGraph


def require_free(path: Path, force: bool) -> Path:
    """Return a path that may be written; raise `UsageError` where something is in the way."""
    if path.exists() and not force:
        raise UsageError(
            path, "it exists", "nothing is overwritten unasked", "name another file or add --force"
        )
    if not path.parent.is_dir():
        raise UsageError(
            path, "its folder does not exist", "a folder to write to is needed", "make it first"
        )
    return path


def save_safetensors(
    graph: WeightGraph, path: str | Path, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write every tensor, with the order of keys, ties and output axes; `open_file` reads it.

    A tied tensor is written under each of its names, so that any reader finds all of them. Raises
    `SourceError` for a type that the format does not know.
    """
    path = Path(path)
    state = _apart(graph.state_dict())
    axes = {param.key: param.axis for param in graph.params if param.axis}
    own = {"keys": list(state), "ties": dict(graph.ties), "axes": axes}
    # One entry, because the format writes several in any order: same network, same bytes.
    told = {HEADER: json.dumps({**(metadata or {}), **own})}
    try:
        return write_whole(path, lambda partial: save_file(state, partial, metadata=told))
    except KeyError as error:
        raise SourceError(
            path, f"a tensor has the type {error.args[0]}", "safetensors does not know it",
            "write a .pt file",
        ) from error  # fmt: skip


def save_checkpoint(graph: WeightGraph, path: str | Path) -> Path:
    """Write a plain state dict as torch.save does; ties are kept."""
    path = Path(path)
    return write_whole(path, lambda partial: torch.save(graph.state_dict(), partial))


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


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the path and rename; leave nothing half-written behind."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        return partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save: RuntimeError, disk full
        reason = str(error).partition("\n")[0]
        raise SourceError(
            path, f"it cannot be written ({reason})", "room and the right to write are needed",
            "choose another place",
        ) from error  # fmt: skip
    finally:
        with suppress(OSError):
            partial.unlink()
