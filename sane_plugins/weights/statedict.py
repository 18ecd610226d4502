"""Networks from mappings of tensors: grouped into layers by their names, as a module's are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sane_plugins.weights.graph import Layer, Param, Role, WeightGraph
from sane_plugins.weights.grouping import NORM_ROLES, in_layer_order, memory, owner_of

NO_TOPOLOGY = "no topology: a file of tensors does not say how they are connected"
Described = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def from_state_dict(
    tensors: Mapping[str, torch.Tensor], source: str, *, container: str = "state_dict",
    ties: Mapping[str, str] | None = None, axes: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (), described: Described | None = None,
) -> WeightGraph:  # fmt: skip
    """Group a mapping of tensors into layers by the part of their keys before the last dot.

    Tensors that share memory are tied, unless `ties` (alias -> owner) says which are; pruning's `X_orig`
    and `X_mask` are folded into `X`; tensors that are not floating-point are named in `untouched`.
    `described` gives the shapes and types of tensors that are read later.
    """
    if described is None:
        described = {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}
    pruned = _pruned(described)
    ties = _shared(tensors, pruned) if ties is None else dict(ties)
    if pruned:
        tensors = _folded(tensors, pruned)
        described = {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}
    reason = "part of a pruned tensor, folded into the tensor in use"
    untouched = {f"{key}_{part}": reason for key in pruned for part in ("orig", "mask")}
    grouped: dict[str, list[Param]] = {}
    for key, (shape, dtype) in described.items():
        owner, attribute = owner_of(key), key.rpartition(".")[2]
        if not dtype.is_floating_point:
            untouched[key] = f"{dtype} values are no weights"
        elif key not in ties:
            role = _role(attribute, len(shape), f"{owner}.running_mean" in tensors)
            axis = (axes or {}).get(key, 0)
            param = Param(key=key, role=role, shape=shape, dtype=dtype, axis=axis)
            grouped.setdefault(owner, []).append(param)
    layers = tuple(
        Layer(name=name, kind="unknown", params=in_layer_order(params))
        for name, params in grouped.items()
    )
    if any("parametrizations" in key.split(".") for key in tensors):
        notes += ("its parametrisations are read as stored: a file does not say what they compute",)
    return WeightGraph(
        source=source, layers=layers, tensors=tensors, untouched=untouched, ties=ties,
        notes=(NO_TOPOLOGY, *notes), container=container,
    )  # fmt: skip


def _pruned(described: Described) -> list[str]:
    """Return the names that `torch.nn.utils.prune` stores as an original and a mask of one shape."""
    plain = [key.removesuffix("_orig") for key in described if key.endswith("_orig")]
    return [
        key for key in plain
        if f"{key}_mask" in described and key not in described
        and described[f"{key}_mask"][0] == described[f"{key}_orig"][0]
    ]  # fmt: skip


def _folded(tensors: Mapping[str, torch.Tensor], pruned: list[str]) -> dict[str, torch.Tensor]:
    """Return the tensors in use, each pruned one in the place of its original."""
    plain = {f"{key}_orig": key for key in pruned}
    masks = {f"{key}_mask" for key in pruned}
    folded = {}
    for key, tensor in tensors.items():
        if key in plain:
            folded[plain[key]] = tensor * tensors[f"{plain[key]}_mask"]
        elif key not in masks:
            folded[key] = tensor
    return folded


def _shared(tensors: Mapping[str, torch.Tensor], pruned: list[str]) -> dict[str, str]:
    """Return the names whose values lie in the same memory as earlier ones."""
    plain = {f"{key}_orig": key for key in pruned}
    masks = {f"{key}_mask" for key in pruned}
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and key not in masks:
            place, name = memory(tensor), plain.get(key, key)
            if key in plain:
                place += memory(tensors[f"{name}_mask"])
            if first.setdefault(place, name) != name:
                ties[name] = first[place]
    return ties


def _role(attribute: str, axes: int, has_statistics: bool) -> Role:
    """Label a tensor by torch's own attribute names; labels decide nothing."""
    if has_statistics:
        return NORM_ROLES.get(attribute, "other")
    return "weight" if axes > 1 else "bias" if attribute == "bias" else "other"
