"""Networks from state dicts: tensors are grouped into layers by their names, as in a module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod

import torch

from sane_plugins.formats.dequantize import Content, Described, describe_content
from sane_plugins.formats.inferred_chain import infer_chain
from sane_plugins.weights import (
    Layer,
    Param,
    WeightGraph,
    describe_layers,
    layer_name,
    memory_key,
    vectors_last,
)

NO_TOPOLOGY = "no topology: a file of tensors does not say how they are connected"
# Parts of the names that quantisers give to 32-bit integers that hold packed weights.
_PACKED_NAMES = ("weight", "zeros", "packed")


def from_state_dict(
    tensors: Mapping[str, torch.Tensor],
    source: str,
    *,
    container: str = "state_dict",
    ties: Mapping[str, str] | None = None,
    axes: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
    content: Content | None = None,
) -> WeightGraph:
    """Group a mapping of tensors into layers by the part of their keys before the last dot.

    Tensors that share memory are tied, unless `ties` (alias -> owner) says which are; quantised and sparse
    tensors are made plain; pruning's `X_orig` and `X_mask` are folded into `X`; tensors that are not
    floating-point are named in `untouched`, and in `missed` where they may be weights. `content` describes
    tensors that are read later.
    """
    content = content or describe_content(tensors, source)
    tensors, described, converted = content.tensors, content.described, dict(content.converted)
    pruned = _pruned_names(described)
    ties = _find_ties(tensors, described, converted, pruned) if ties is None else dict(ties)
    if pruned:
        tensors = _fold_masks(tensors, pruned)
        described = {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}
        converted = {key: how for key, how in converted.items() if key in tensors}
        converted |= dict.fromkeys(pruned, "its pruning mask is folded in")
    reason = "part of a pruned tensor, folded into the tensor in use"
    untouched = {f"{key}_{part}": reason for key in pruned for part in ("orig", "mask")}
    untouched |= {key: reason for key, (_, reason) in content.unread.items()}
    missed = {key: count for key, (count, _) in content.unread.items() if count}
    grouped: dict[str, list[Param]] = {}
    for key, (shape, dtype) in described.items():
        owner, attribute = layer_name(key), key.rpartition(".")[2]
        if not dtype.is_floating_point:
            untouched[key], may_be_weights = _reason_untouched(attribute, shape, dtype)
            if may_be_weights and 0 not in shape:
                missed[key] = prod(shape)
        elif key not in ties:
            param = Param(key=key, role="other", shape=shape, dtype=dtype)
            grouped.setdefault(owner, []).append(param)
    layers = _layers(grouped, axes, {*ties.values()})
    # Shared or unread weights, and tables of indices, connect layers in ways that shapes do not show.
    is_plain = (
        not ties
        and not missed
        and all(prod(described[key][0]) == 1 for key in untouched if key in described)
    )
    connected, note = infer_chain(layers) if is_plain else ((), "")
    return WeightGraph(
        source=source,
        layers=connected or layers,
        tensors=tensors,
        untouched=untouched,
        ties=ties,
        missed=missed,
        converted={
            key: how for key, how in converted.items() if key not in untouched and key not in ties
        },
        notes=(note or NO_TOPOLOGY, *notes, *_notes(described, content)),
        container=container,
    )


def _layers(
    grouped: Mapping[str, Sequence[Param]], axes: Mapping[str, int] | None, tied: Collection[str]
) -> tuple[Layer, ...]:
    """Return layers with what their tensors' shapes say of them.

    A module registers its weight before its bias; names that are sorted have them the other way round,
    and still are in the network's order where layers differ in their numbers only.
    """
    is_registered = any(
        len(first.shape) > len(second.shape) or first.key > second.key
        for params in grouped.values()
        for first, second in pairwise(params)
    )
    layers = [
        Layer(name=name, kind="unknown", params=vectors_last(params))
        for name, params in grouped.items()
    ]
    return describe_layers(layers, axes, tied, in_own_order=is_registered or _are_numbered(grouped))


def _are_numbered(names: Iterable[str]) -> bool:
    """Return whether each name differs from the next one first in a number."""
    for one, other in pairwise(name.split(".") for name in names):
        first = next(((a, b) for a, b in zip(one, other, strict=False) if a != b), ("", ""))
        if not all(part.isdecimal() for part in first):
            return False
    return True


def _notes(described: Described, content: Content) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if any("parametrizations" in key.split(".") for key in described):
        notes += ("its parametrisations are read as stored: a file does not say what they compute",)
    if content.converted:
        count = len(content.converted)
        notes += (
            f"{count} quantised or sparse tensors are read as plain ones, and written as such",
        )
    return notes


def _reason_untouched(
    attribute: str, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[str, bool]:
    """Return why a tensor that is not floating-point is left alone, and whether it may be weights."""
    if dtype.is_complex:
        return f"{dtype} values are not read as weights", True
    packed = dtype == torch.int32 and any(part in attribute for part in _PACKED_NAMES)
    if len(shape) > 1 and (dtype in (torch.int8, torch.uint8) or packed):
        note = "may be quantised weights; their scales are not known to this reader"
        return f"{dtype} values {note}", True
    return f"{dtype} values are no weights", False


def _pruned_names(described: Described) -> list[str]:
    """Return the names that `torch.nn.utils.prune` stores as an original and a mask of one shape."""
    plain = [key.removesuffix("_orig") for key in described if key.endswith("_orig")]
    return [
        key
        for key in plain
        if f"{key}_mask" in described
        and key not in described
        and described[f"{key}_mask"][0] == described[f"{key}_orig"][0]
    ]


def _fold_masks(tensors: Mapping[str, torch.Tensor], pruned: list[str]) -> dict[str, torch.Tensor]:
    """Return the effective tensors: each pruned one replaces its original."""
    plain = {f"{key}_orig": key for key in pruned}
    masks = {f"{key}_mask" for key in pruned}
    folded = {}
    for key, tensor in tensors.items():
        if key in plain:
            folded[plain[key]] = tensor * tensors[f"{plain[key]}_mask"]
        elif key not in masks:
            folded[key] = tensor
    return folded


def _find_ties(
    tensors: Mapping[str, torch.Tensor],
    described: Described,
    converted: Mapping[str, str],
    pruned: list[str],
) -> dict[str, str]:
    """Return the names that share memory with an earlier one, mapped to that one."""
    plain = {f"{key}_orig": key for key in pruned}
    masks = {f"{key}_mask" for key in pruned}
    first_names: dict[tuple[object, ...], str] = {}
    ties = {}
    for key, (_, dtype) in described.items():
        if dtype.is_floating_point and key not in masks and key not in converted:
            memory, name = memory_key(tensors[key]), plain.get(key, key)
            if key in plain:
                memory += memory_key(tensors[f"{name}_mask"])
            if first_names.setdefault(memory, name) != name:
                ties[name] = first_names[memory]
    return ties
