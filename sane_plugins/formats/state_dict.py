"""Networks from state dicts: tensors are grouped into layers by their names, as in a module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod

import torch

from sane_plugins.formats.dequantize import Content, decode_quantized, describe_content
from sane_plugins.formats.folding import Folded, fold
from sane_plugins.formats.inferred_chain import infer_chain
from sane_plugins.formats.key_prefixes import rename_content
from sane_plugins.quantization import FLOAT8, Described, unread_reason
from sane_plugins.weights import (
    Layer,
    Param,
    WeightGraph,
    describe_layers,
    layer_name,
    memory_key,
    strip_wrapper_prefixes,
    vectors_last,
)

NO_TOPOLOGY = "no topology: a file of tensors does not say how they are connected"


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
    names = strip_wrapper_prefixes([*content.described, *content.unread, *(ties or ())])
    if names.plain:
        content = rename_content(content, names)
        if ties is not None:
            ties = {names.of(key): names.of(owner) for key, owner in ties.items()}
        axes = axes and {names.of(key): axis for key, axis in axes.items()}
        notes += (f"names are the plain module's, without {', '.join(names.wrappers)}",)
    content = decode_quantized(content, source)
    folded = fold(content.tensors, content.described, axes or {}, source)
    tensors, described = folded.tensors, folded.described
    ties = _find_ties(content, folded) if ties is None else folded.used_ties(ties)
    ties = {alias: key for alias, key in ties.items() if key in described}
    if axes is not None:  # where they are not told, they are inferred
        axes = {key: axes.get(folded.main_source(key), 0) for key in described}
    converted = {key: how for key, how in content.converted.items() if key in described} | {
        key: f"its {part.rule} is folded in" for key, part in folded.computed.by_name.items()
    }
    unread = {**content.unread, **folded.unread}
    untouched = {
        **dict(folded.reasons()),
        **{key: reason for key, (_, reason) in unread.items()},
        **content.folded,
    }
    missed = {key: count for key, (count, _) in unread.items() if count}
    grouped: dict[str, list[Param]] = {}
    for key, (shape, dtype) in described.items():
        owner, attribute = layer_name(key), key.rpartition(".")[2]
        if key in content.settings:
            untouched[key] = content.settings[key]
        elif key in content.missed:
            missed[key], untouched[key] = content.missed[key]
        elif not dtype.is_floating_point:
            untouched[key], count = unread_reason(attribute, shape, dtype)
            if count:
                missed[key] = count
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
        stored_form=folded.stored_form(content.tensors),
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


def layers_by_name(
    params: Iterable[Param], axes: Mapping[str, int], tied: Collection[str]
) -> tuple[Layer, ...]:
    """Return the layers that names and shapes say of tensors whose output axes are told."""
    grouped: dict[str, list[Param]] = {}
    for param in params:
        grouped.setdefault(layer_name(param.key), []).append(param)
    return _layers(grouped, axes, tied)


def _are_numbered(names: Iterable[str]) -> bool:
    """Return whether each name differs from the next one first in a number."""
    for one, other in pairwise(name.split(".") for name in names):
        first = next(((a, b) for a, b in zip(one, other, strict=False) if a != b), ("", ""))
        if not all(part.isdecimal() for part in first):
            return False
    return True


def _notes(described: Described, content: Content) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
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
