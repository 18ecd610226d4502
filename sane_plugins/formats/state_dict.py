"""Networks from state dicts: tensors are grouped into layers by their names, as in a module."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from sane_plugins.formats.dequantize import Content, describe_content
from sane_plugins.formats.folding import Folded, fold
from sane_plugins.weights import (
    NORM_ROLES,
    Layer,
    Param,
    Role,
    WeightGraph,
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
    tensors are made plain; pruning, weight norm and spectral norm are folded into the tensor in use; tensors
    that are not floating-point are named in `untouched`, and in `missed` where they may be weights.
    `content` describes tensors that are read later.
    """
    content = content or describe_content(tensors, source)
    folded = fold(content.tensors, content.described, axes or {}, source)
    tensors, described = folded.tensors, folded.described
    ties = _find_ties(content, folded) if ties is None else folded.used_ties(ties)
    converted = {key: how for key, how in content.converted.items() if key in described} | {
        key: f"its {part.rule} is folded in" for key, part in folded.computed.by_name.items()
    }
    unread = {**content.unread, **folded.unread}
    untouched = {**dict(folded.reasons()), **{key: reason for key, (_, reason) in unread.items()}}
    missed = {key: count for key, (count, _) in unread.items() if count}
    grouped: dict[str, list[Param]] = {}
    for key, (shape, dtype) in described.items():
        owner, attribute = layer_name(key), key.rpartition(".")[2]
        if not dtype.is_floating_point:
            untouched[key], may_be_weights = _reason_untouched(attribute, shape, dtype)
            if may_be_weights and 0 not in shape:
                missed[key] = prod(shape)
        elif key not in ties:
            role = _role(attribute, len(shape), f"{owner}.running_mean" in described)
            axis = (axes or {}).get(folded.main_source(key), 0)
            param = Param(key=key, role=role, shape=shape, dtype=dtype, axis=axis)
            grouped.setdefault(owner, []).append(param)
    layers = tuple(
        Layer(name=name, kind="unknown", params=vectors_last(params))
        for name, params in grouped.items()
    )
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
        notes=(NO_TOPOLOGY, *notes, *_notes(content)),
        container=container,
        stored_form=folded.stored_form(content.tensors),
    )


def _notes(content: Content) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
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


def _find_ties(content: Content, folded: Folded) -> dict[str, str]:
    """Return the names whose stored tensors share memory with an earlier one's, mapped to that one."""
    first_names: dict[tuple[object, ...], str] = {}
    ties = {}
    for key, (_, dtype) in folded.described.items():
        stored = folded.computed.stored_names(key)
        if dtype.is_floating_point and not any(name in content.converted for name in stored):
            memory = tuple(part for name in stored for part in memory_key(content.tensors[name]))
            if first_names.setdefault(memory, key) != key:
                ties[key] = first_names[memory]
    return ties


def _role(attribute: str, rank: int, has_statistics: bool) -> Role:
    """Return a tensor's role by torch's attribute names; nothing depends on it."""
    if has_statistics:
        return NORM_ROLES.get(attribute, "other")
    return "weight" if rank > 1 else "bias" if attribute == "bias" else "other"
