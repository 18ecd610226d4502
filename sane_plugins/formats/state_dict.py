"""Networks from state dicts: tensors are grouped into layers by their names, as in a module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod

import torch

from sane_plugins.formats.dequantize import Content, decode_quantized, describe_content
from sane_plugins.formats.key_prefixes import rename_content, strip_wrapper_prefixes
from sane_plugins.quantization import FLOAT8, Described
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
_PACKED_NAMES = ("weight", "packed", "qdata")
_QUANTIZED_TYPES = {torch.int8, torch.uint8, torch.int16, torch.uint16}
_PACKED_VALUES = 8  # in each of them, of 4 bits as a rule


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
    names = strip_wrapper_prefixes([*content.described, *content.unread, *(ties or ())])
    if names.plain:
        content = rename_content(content, names)
        ties = {names.of(key): names.of(owner) for key, owner in (ties or {}).items()} or ties
        axes = {names.of(key): axis for key, axis in (axes or {}).items()}
        notes += (f"names are the plain module's, without {', '.join(names.wrappers)}",)
    content = decode_quantized(content, source)
    tensors, described, converted = content.tensors, content.described, dict(content.converted)
    pruned = _pruned_names(described)
    if ties is None:
        ties = _find_ties(tensors, described, converted, pruned)
    else:
        ties = {alias: key for alias, key in ties.items() if {alias, key} <= described.keys()}
    if pruned:
        tensors = _fold_masks(tensors, pruned)
        described = {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}
        converted = {key: how for key, how in converted.items() if key in tensors}
        converted |= dict.fromkeys(pruned, "its pruning mask is folded in")
    reason = "part of a pruned tensor, folded into the tensor in use"
    untouched = {f"{key}_{part}": reason for key in pruned for part in ("orig", "mask")}
    untouched |= {key: reason for key, (_, reason) in content.unread.items()}
    untouched |= content.folded
    missed = {key: count for key, (count, _) in content.unread.items() if count}
    grouped: dict[str, list[Param]] = {}
    for key, (shape, dtype) in described.items():
        owner, attribute = layer_name(key), key.rpartition(".")[2]
        if key in content.settings:
            untouched[key] = content.settings[key]
        elif key in content.missed:
            missed[key], untouched[key] = content.missed[key]
        elif not dtype.is_floating_point:
            untouched[key], count = _reason_untouched(attribute, shape, dtype)
            if count:
                missed[key] = count
        elif key not in ties:
            param = Param(key=key, role="other", shape=shape, dtype=dtype)
            grouped.setdefault(owner, []).append(param)
    layers = _layers(grouped, axes, {*ties.values()})
    return WeightGraph(
        source=source,
        layers=layers,
        tensors=tensors,
        untouched=untouched,
        ties=ties,
        missed=missed,
        converted={
            key: how for key, how in converted.items() if key not in untouched and key not in ties
        },
        notes=(NO_TOPOLOGY, *notes, *_notes(described, content)),
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
    plain_bytes = [
        key
        for key, (_, dtype) in described.items()
        if dtype in FLOAT8 and not {key} & (content.settings.keys() | content.missed.keys())
    ]
    if plain_bytes:
        notes += (
            f"{len(plain_bytes)} tensors of 8-bit floats are read as stored: no scale lies beside them",
        )
    if content.converted:
        count = len(content.converted)
        notes += (
            f"{count} quantised or sparse tensors are read as plain ones, and written as such",
        )
    return notes


def _reason_untouched(
    attribute: str, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[str, int]:
    """Return why a tensor that is not floating-point is left alone, and how many weights it may hold."""
    count = prod(shape)
    if dtype.is_complex:
        return f"{dtype} values are not read as weights", count
    note = "may be quantised weights; their scales are not known to this reader"
    if len(shape) > 1 and dtype in _QUANTIZED_TYPES:
        return f"{dtype} values {note}", count
    if len(shape) > 1 and dtype == torch.int32 and any(x in attribute for x in _PACKED_NAMES):
        return f"{dtype} values {note} (counted as eight of 4 bits)", _PACKED_VALUES * count
    return f"{dtype} values are no weights", 0


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
