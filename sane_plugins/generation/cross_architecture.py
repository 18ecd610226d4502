"""Weights of one architecture for another: deeper, wider, narrower, or with other kernels.

A layer that a prompt lacks takes the weights of the nearest of its kind. A network at least twice as wide
takes several prompts side by side, which learn better than copies of one; what joins two of them is the
default's. Otherwise channels are counted around, and what reads a repeated channel reads each copy by its
share: the wider network computes what the prompt does (Chen et al., "Net2Net", 2016, section 2.2;
narrower: Xu et al., "Weight Selection", 2024).
The method: docs/explanation/sane.md, sections 11.2 and 11.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

import torch

from sane_plugins.generation.resize_tensor import Piece, fitted
from sane_plugins.weights import Layer, WeightGraph

_PASSED = ("norm", "pointwise", "flatten", "reduce", "squeeze", "unsqueeze")
Signature = tuple[object, ...]


@dataclass(frozen=True)
class Expansion:
    """How tensors of prompts become tensors of a target of another architecture.

    `beside` is the number of prompts that fit side by side into the typical layer, at least 1.
    """

    pieces: tuple[Piece, ...]
    beside: int

    def apply(
        self, prompts: Sequence[Mapping[str, torch.Tensor]], default: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return tensors of the target, by their keys, from at most `beside` prompts and the target's own."""
        return {
            piece.param.key: fitted(
                [tensors[piece.source.key] for tensors in prompts], default[piece.param.key], piece
            )
            for piece in self.pieces
        }


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
                is_classifier = param.key in classifier
                pieces.append(
                    Piece(param=param, source=source, channels=known, is_classifier=is_classifier)
                )
    return Expansion(tuple(pieces), _beside(pieces)) if pieces else None


def _beside(pieces: Sequence[Piece]) -> int:
    """Return how many prompts fit into the typical hidden layer: where few are wider, others would suffer."""
    hidden = [x for x in pieces if len(x.param.shape) > 1 and not x.is_classifier]
    ratios = [x.param.shape[x.param.axis] // x.source.shape[x.param.axis] for x in hidden]
    return max(1, median_low(ratios)) if ratios else 1


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


def _weighted(graph: WeightGraph) -> list[Layer]:
    return [layer for layer in graph.layers if layer.params]


def _form(layer: Layer) -> Signature:
    return (layer.kind, tuple(sorted((p.role, len(p.shape)) for p in layer.params)))


def _shapes(layer: Layer) -> list[tuple[int, ...]]:
    return [p.shape for p in layer.params]
