"""Networks from files of tensors, safely: safetensors read on demand, checkpoints without pickled code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import Layer, Param, Role, WeightGraph

CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
HEADER = "sane"
NO_TOPOLOGY = "no topology: a file of tensors does not say how they are connected"
_ZIP, _PICKLE = b"PK", b"\x80"
_NORM_ROLES: Mapping[str, Role] = {
    "weight": "scale", "bias": "shift", "running_mean": "running_mean", "running_var": "running_var",
}  # fmt: skip


def open_file(path: str | Path) -> WeightGraph | None:
    """Read a `.safetensors` file or a torch checkpoint; None where the suffix is another.

    Raises `SourceError` for a file that is missing, broken, empty of weights, or that holds code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(require_file(path))
    if path.suffix in CHECKPOINTS:
        return _open_checkpoint(require_file(path))
    return None


def require_file(path: Path) -> Path:
    """Return the path of a file that exists and holds something; raise `SourceError` otherwise."""
    found = "it does not exist"
    if path.is_dir():
        found = "it is a folder"
    elif path.is_file():
        found = "it is empty" if not path.stat().st_size else ""
    if found:
        raise SourceError(path, found, "a file with weights is needed", "check the path")
    return path


def from_state_dict(
    tensors: Mapping[str, torch.Tensor], source: str, *, container: str = "state_dict",
    ties: Mapping[str, str] | None = None, axes: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> WeightGraph:  # fmt: skip
    """Group a mapping of tensors into layers by the part of their keys before the last dot.

    Tensors that share memory are tied; pruning's `X_orig` and `X_mask` are folded into `X`; tensors that
    are not floating-point are named in `untouched`.
    """
    tensors, untouched = _folded(tensors)
    ties = dict(ties or _shared(tensors))
    grouped: dict[str, list[Param]] = {}
    for key, (shape, dtype) in _described(tensors).items():
        if not dtype.is_floating_point:
            untouched[key] = f"{dtype} values are no weights"
            continue
        owner, _, attribute = key.rpartition(".")
        params = grouped.setdefault(owner or key, [])
        if key not in ties:
            role = _role(attribute, len(shape), f"{owner}.running_mean" in tensors)
            axis = (axes or {}).get(key, 0)
            params.append(Param(key=key, role=role, shape=shape, dtype=dtype, axis=axis))
    layers = tuple(
        Layer(name=name, kind="unknown", params=tuple(sorted(params, key=_vectors_last)))
        for name, params in grouped.items()
    )
    return WeightGraph(
        source=source, layers=layers, tensors=tensors, untouched=untouched, ties=ties,
        notes=(NO_TOPOLOGY, *notes), container=container,
    )  # fmt: skip


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, read when they are asked for."""

    def __init__(self, path: Path, keys: list[str]) -> None:
        self._path, self._keys = path, dict.fromkeys(keys)
        self._file = safe_open(path, framework="pt")

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._keys:
            raise KeyError(key)
        try:
            return self._file.get_tensor(key)  # type: ignore[no-any-return]
        except SafetensorError as error:
            raise _broken(self._path, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def describe(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return a tensor's shape and type; only its first row is read."""
        part = self._file.get_slice(key)
        shape = tuple(part.get_shape())
        few = part[:1] if shape and shape[0] else self._file.get_tensor(key)
        return shape, few.dtype


def _open_safetensors(path: Path) -> WeightGraph:
    try:
        with safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error
    told = json.loads(metadata.get(HEADER, "{}"))
    written = told.get("keys", [])
    # The format sorts keys by type and name; a file that is not ours gets layer 10 after layer 2.
    order = written if sorted(written) == sorted(keys) else sorted(keys, key=_natural)
    return from_state_dict(
        LazyTensors(path, order), str(path), container="safetensors",
        ties=told.get("ties"), axes=told.get("axes"),
    )  # fmt: skip


def _open_checkpoint(path: Path) -> WeightGraph:
    content = _unpickled(path)
    states = sorted(_state_dicts(content, ()), key=lambda found: _size(found[1]))
    if not states:
        raise SourceError(
            path, "no mapping from names to tensors was found", "a state dict is needed",
            "save one with torch.save(module.state_dict(), path)",
        )  # fmt: skip
    place, tensors = states[-1]
    notes = (f"read from '{'.'.join(place)}'",) if place else ()
    # DataParallel puts its own attribute before every key.
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return from_state_dict(tensors, str(path), container="checkpoint", notes=notes)


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        magic = file.read(2)
    if not magic.startswith((_ZIP, _PICKLE)):
        raise SourceError(
            path, "this is no torch checkpoint", "a file written by torch.save is needed",
            "check that the download is complete and the suffix is right",
        )  # fmt: skip
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise SourceError(
            path, "it holds pickled objects, which can run code", "only plain tensors are read",
            "where you trust the file, save module.state_dict() from it with safetensors.torch.save_file",
        ) from error  # fmt: skip
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        found = "it is a TorchScript archive" if "TorchScript" in str(error) else "it is broken"
        raise SourceError(
            path, found, "a whole checkpoint with a state dict is needed",
            "copy it again, or save module.state_dict() from it",
        ) from error  # fmt: skip


def _state_dicts(
    content: Any, place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """Yield every mapping from names to tensors in nested mappings, with the place it was found at."""
    if not isinstance(content, Mapping):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and torch.is_tensor(v)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        yield from _state_dicts(value, (*place, str(key)))


def _folded(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[Mapping[str, torch.Tensor], dict[str, str]]:
    """Fold pruned tensors; return the tensors, and why the parts are not read."""
    pruned = [
        key.removesuffix("_orig") for key in tensors
        if key.endswith("_orig") and f"{key.removesuffix('_orig')}_mask" in tensors
    ]  # fmt: skip
    parts = {f"{key}_{part}" for key in pruned for part in ("orig", "mask")}
    if not pruned:
        return tensors, {}
    plain = {key: tensors[key + "_orig"] * tensors[key + "_mask"] for key in pruned}
    plain |= {key: tensors[key] for key in tensors if key not in parts}
    return plain, dict.fromkeys(parts, "part of a pruned tensor, folded into the tensor in use")


def _shared(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the keys whose tensor lies in the same memory as an earlier one."""
    if isinstance(tensors, LazyTensors):
        return {}
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for key, tensor in tensors.items():
        if tensor.numel() and tensor.is_floating_point():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if first.setdefault(place, key) != key:
                ties[key] = first[place]
    return ties


def _described(
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    if isinstance(tensors, LazyTensors):
        return {key: tensors.describe(key) for key in tensors}
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def _role(attribute: str, axes: int, has_statistics: bool) -> Role:
    """Label a tensor by torch's own attribute names; labels decide nothing."""
    if has_statistics:
        return _NORM_ROLES.get(attribute, "other")
    return "weight" if axes > 1 else "bias" if attribute == "bias" else "other"


def _vectors_last(param: Param) -> bool:
    return len(param.shape) < 2


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _broken(path: Path, error: Exception) -> SourceError:
    return SourceError(
        path, f"it is no whole safetensors file ({error})", "a complete one is needed",
        "copy or download it again",
    )  # fmt: skip
