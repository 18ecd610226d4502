"""Weights of one architecture for another: deeper, wider, narrower, or with other kernels.

A layer that a prompt lacks takes the weights of the nearest of its kind; channels are counted around and
what reads a repeated channel reads each copy by its share, so a wider network computes what the prompt
does (Chen et al., "Net2Net", 2016, section 2.2; narrower: Xu et al., "Weight Selection", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt

import torch
from torch.nn.functional import interpolate

from sane_plugins.weights.graph import Layer, Param, WeightGraph

_NOISE = 0.3  # of repeated channels: equal ones would stay equal in training
_PASSED = ("norm", "pointwise", "flatten", "reduce", "squeeze", "unsqueeze")
Signature = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where a tensor of the target comes from; `channels` are those that a layer reads, of both."""

    param: Param
    source: Param
    channels: tuple[int, int] | None


@dataclass(frozen=True)
class Expansion:
    """How tensors of a prompt become tensors of a target of another architecture."""

    pieces: tuple[Piece, ...]

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors of the target, by their keys; always the same for the same prompt."""
        return {piece.param.key: _fitted(tensors[piece.source.key], piece) for piece in self.pieces}


def expansion(
    prompt: WeightGraph, target: WeightGraph, classifier: frozenset[str]
) -> Expansion | None:
    """Match layers by kind, by what they feed and by relative place; None where a kind is missing."""
    theirs, own = _weighted(prompt), _weighted(target)
    partners = _partners(prompt, theirs, target, own)
    if partners is None:
        return None
    reads = {id(layer): count for layers in (theirs, own) for layer, count in _reads(layers)}
    pieces: list[Piece] = []
    for layer, partner in zip(own, partners, strict=True):
        roles = {p.role: p for p in partner.params}
        channels = (reads[id(layer)], reads[id(partner)])
        for param in layer.params:
            source = roles.get(param.role)
            if source is None or len(source.shape) != len(param.shape):
                continue
            if param.key not in classifier or param.shape == source.shape:
                known = (channels[0], channels[1]) if all(channels) else None
                pieces.append(Piece(param=param, source=source, channels=known))
    return Expansion(tuple(pieces)) if pieces else None


def _partners(
    prompt: WeightGraph, theirs: Sequence[Layer], target: WeightGraph, own: Sequence[Layer]
) -> list[Layer] | None:
    """Return the prompt's layer for each layer of the target; None where some kind has none."""
    if [_form(x) for x in own] == [_form(x) for x in theirs]:
        return list(theirs)
    told = prompt.has_topology and target.has_topology
    signs = [_signatures(g, layers, told) for g, layers in ((prompt, theirs), (target, own))]
    found = []
    for layer, sign in zip(own, signs[1], strict=True):
        alike = [x for x, s in zip(theirs, signs[0], strict=True) if s == sign]
        mine = [x for x, s in zip(own, signs[1], strict=True) if s == sign]
        if not alike:
            alike = [x for x in theirs if _form(x) == _form(layer)]
            mine = [x for x in own if _form(x) == _form(layer)]
        if same := [x for x in alike if _shapes(x) == _shapes(layer)]:
            alike, mine = same, [x for x in mine if _shapes(x) == _shapes(layer)]
        if not alike:
            return None
        place = mine.index(layer) * (len(alike) - 1) / max(1, len(mine) - 1)
        found.append(alike[round(place)])
    return found


def _signatures(graph: WeightGraph, layers: Sequence[Layer], told: bool) -> list[Signature]:
    if not told:
        return [(_form(layer),) for layer in layers]
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    return [(_form(layer), _feeds(layer, readers)) for layer in layers]


def _feeds(layer: Layer, readers: Mapping[str, list[Layer]]) -> frozenset[str]:
    """Return the kinds of layers that a layer's output comes to, past norms and activations."""
    found: set[str] = set()
    ahead = [*readers.get(layer.name, [])]
    while ahead:
        reader = ahead.pop()
        if reader.kind in _PASSED:
            ahead += readers.get(reader.name, [])
        else:
            found.add(reader.kind)
    return frozenset(found)


def _reads(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """Return for each layer the output channels of the one with a matrix before it, 0 for the first."""
    found, channels = [], 0
    for layer in layers:
        found.append((layer, channels))
        matrices = [p for p in layer.params if len(p.shape) > 1]
        if matrices:
            channels = matrices[0].shape[matrices[0].axis]
    return found


def _fitted(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Bring a tensor to the target's shape."""
    param = piece.param
    if tuple(tensor.shape) == param.shape:
        return tensor.clone()
    out = param.axis
    into = 1 - out if len(param.shape) > 1 else None
    value, grown = tensor, False
    for axis, size in enumerate(param.shape):
        if value.shape[axis] == size:
            continue
        if axis not in (out, into):
            value = _cropped(value, axis, size)
        elif axis == into and (parts := _features(value.shape[axis], size, piece)):
            value = _flat_features(value, axis, *parts)
        else:
            value = _repeated(value, axis, size, shared=axis == into)
        grown |= size > tensor.shape[axis] and axis in (out, into)
    return value * _noise(param).to(value) if grown and into is not None else value


def _repeated(value: torch.Tensor, axis: int, size: int, shared: bool) -> torch.Tensor:
    """Count channels around; `shared`: each copy gets its part of the weight."""
    index = torch.arange(size) % value.shape[axis]
    picked = value.index_select(axis, index)
    if not shared or size <= value.shape[axis]:
        return picked
    shape = [1] * value.ndim
    shape[axis] = size
    return picked / torch.bincount(index)[index].view(shape)


def _features(had: int, wanted: int, piece: Piece) -> tuple[int, int, int, int] | None:
    """Return channels and side of flattened maps that a layer reads, of the prompt and of the target."""
    if piece.channels is None:
        return None
    own, theirs = piece.channels
    if wanted % own or had % theirs:
        return None
    side, their_side = isqrt(wanted // own), isqrt(had // theirs)
    squares = side * side * own == wanted and their_side * their_side * theirs == had
    return (theirs, their_side, own, side) if squares and max(side, their_side) > 1 else None


def _flat_features(
    value: torch.Tensor, axis: int, had: int, had_side: int, wanted: int, side: int
) -> torch.Tensor:
    """Fit the weights of flattened maps: channels are counted around, maps are resized."""
    maps = value.movedim(axis, -1).unflatten(-1, (had, had_side, had_side))
    lead = maps.shape[:-3]
    if side != had_side:
        grid = maps.reshape(-1, had, had_side, had_side)
        maps = interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
        maps = (maps * (had_side / side) ** 2).view(*lead, had, side, side)
    return _repeated(maps, maps.ndim - 3, wanted, shared=True).flatten(-3).movedim(-1, axis)


def _cropped(value: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Cut a kernel's axis around its middle, or pad it with zeros."""
    had = value.shape[axis]
    if had > size:
        return value.narrow(axis, (had - size) // 2, size)
    shape = list(value.shape)
    shape[axis] = size
    padded = value.new_zeros(shape)
    padded.narrow(axis, (size - had) // 2, had).copy_(value)
    return padded


def _noise(param: Param) -> torch.Tensor:
    seed = int.from_bytes(sha256(param.key.encode()).digest()[:7], "big")
    return 1 + _NOISE * torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))


def _weighted(graph: WeightGraph) -> list[Layer]:
    return [layer for layer in graph.layers if layer.params]


def _form(layer: Layer) -> Signature:
    return (layer.kind, tuple(sorted((p.role, len(p.shape)) for p in layer.params)))


def _shapes(layer: Layer) -> list[tuple[int, ...]]:
    return [p.shape for p in layer.params]
