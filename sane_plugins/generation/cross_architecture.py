"""Weights of one architecture for another: deeper, wider, narrower, or with other kernels.

A layer that a prompt lacks takes the weights of the nearest of its kind. A network at least twice as wide
takes several prompts side by side, which learn better than copies of one; the weights between two of them
keep their default. Otherwise channels are repeated cyclically, and the weights that read a repeated channel
are divided among its copies: the wider network computes what the prompt does (Chen et al., "Net2Net", 2016,
section 2.2; narrower: Xu et al., "Weight Selection", 2024).
The method: docs/explanation/sane.md, sections 11.2 and 11.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

import torch

from sane_plugins.generation.resize_tensor import TensorMapping, resize_to_target
from sane_plugins.weights import Layer, WeightGraph

_PASS_THROUGH_KINDS = ("norm", "pointwise", "flatten", "reduce", "squeeze", "unsqueeze")
Signature = tuple[object, ...]


@dataclass(frozen=True)
class Expansion:
    """How tensors of prompts become tensors of a target of another architecture.

    `width_ratio` is the number of prompts that fit side by side into the typical layer, at least 1.
    """

    mappings: tuple[TensorMapping, ...]
    width_ratio: int

    def apply(
        self, prompts: Sequence[Mapping[str, torch.Tensor]], default: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return tensors of the target, by their keys, from `width_ratio` prompts or fewer."""
        return {
            mapping.param.key: resize_to_target(
                [tensors[mapping.source.key] for tensors in prompts],
                default[mapping.param.key],
                mapping,
            )
            for mapping in self.mappings
        }


def plan_expansion(
    prompt: WeightGraph, target: WeightGraph, classifier: frozenset[str]
) -> Expansion | None:
    """Match layers by kind, consumers and relative depth; return None where the prompt lacks a kind."""
    prompt_layers, target_layers = _layers_with_weights(prompt), _layers_with_weights(target)
    matches = _match_layers(prompt, prompt_layers, target, target_layers)
    if matches is None:
        return None
    input_channels = {
        id(layer): count
        for layers in (prompt_layers, target_layers)
        for layer, count in _producer_channels(layers)
    }
    mappings: list[TensorMapping] = []
    for layer, match in zip(target_layers, matches, strict=True):
        roles = {p.role: p for p in match.params}
        channels = (input_channels[id(layer)], input_channels[id(match)])
        for param in layer.params:
            source = roles.get(param.role)
            if source is None or len(source.shape) != len(param.shape):
                continue
            if param.key not in classifier or param.shape == source.shape:
                known_channels = (channels[0], channels[1]) if all(channels) else None
                is_classifier = param.key in classifier
                mappings.append(
                    TensorMapping(
                        param=param,
                        source=source,
                        channels=known_channels,
                        is_classifier=is_classifier,
                    )
                )
    return Expansion(tuple(mappings), _width_ratio(mappings)) if mappings else None


def _width_ratio(mappings: Sequence[TensorMapping]) -> int:
    """Return how many prompts fit side by side into the median hidden layer, at least 1."""
    hidden = [m for m in mappings if len(m.param.shape) > 1 and not m.is_classifier]
    ratios = [m.param.shape[m.param.axis] // m.source.shape[m.param.axis] for m in hidden]
    return max(1, median_low(ratios)) if ratios else 1


def _match_layers(
    prompt: WeightGraph,
    prompt_layers: Sequence[Layer],
    target: WeightGraph,
    target_layers: Sequence[Layer],
) -> list[Layer] | None:
    """Return the prompt's layer for each layer of the target, or None where the prompt lacks a kind."""
    if [*map(_layer_form, target_layers)] == [*map(_layer_form, prompt_layers)]:
        return list(prompt_layers)
    use_topology = _consumers_are_known(prompt) and _consumers_are_known(target)
    prompt_signatures = _signatures(prompt, prompt_layers, use_topology)
    target_signatures = _signatures(target, target_layers, use_topology)
    matches = []
    for layer, signature in zip(target_layers, target_signatures, strict=True):
        candidates = _where_equal(prompt_layers, prompt_signatures, signature)
        peers = _where_equal(target_layers, target_signatures, signature)
        if not candidates:
            candidates = [x for x in prompt_layers if _layer_form(x) == _layer_form(layer)]
            peers = [x for x in target_layers if _layer_form(x) == _layer_form(layer)]
        if same_shape := [x for x in candidates if _param_shapes(x) == _param_shapes(layer)]:
            candidates = same_shape
            peers = [x for x in peers if _param_shapes(x) == _param_shapes(layer)]
        if not candidates:
            return None
        position = peers.index(layer) * (len(candidates) - 1) / max(1, len(peers) - 1)
        matches.append(candidates[round(position)])
    return matches


def _where_equal(
    layers: Sequence[Layer], signatures: Sequence[Signature], signature: Signature
) -> list[Layer]:
    return [x for x, other in zip(layers, signatures, strict=True) if other == signature]


def _signatures(graph: WeightGraph, layers: Sequence[Layer], use_topology: bool) -> list[Signature]:
    if not use_topology:
        places = _places_in_blocks(layers)
        return [(_layer_form(x), place) for x, place in zip(layers, places, strict=True)]
    consumers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            consumers.setdefault(name, []).append(layer)
    return [(_layer_form(layer), _consumer_kinds(layer, consumers)) for layer in layers]


def _places_in_blocks(layers: Sequence[Layer]) -> list[int]:
    """Return how many layers come before each in its block, the innermost numbered part of its name.

    A layer in no block has the place -1.
    """
    counts: dict[tuple[str, ...], int] = {}
    places = []
    for layer in layers:
        parts = layer.name.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdecimal()]
        block = tuple(parts[: numbered[-1] + 1]) if numbered else ()
        places.append(counts.get(block, 0) if block else -1)
        counts[block] = places[-1] + 1
    return places


def _consumers_are_known(graph: WeightGraph) -> bool:
    """Return whether all layers say what they read: where some do not, their order has to do."""
    return all(layer.inputs or layer.is_value for layer in _layers_with_weights(graph))


def _consumer_kinds(layer: Layer, consumers: Mapping[str, list[Layer]]) -> frozenset[str]:
    """Return the kinds of the layers that consume a layer's output, looking through norms and activations."""
    kinds: set[str] = set()
    pending = [*consumers.get(layer.name, [])]
    while pending:
        consumer = pending.pop()
        if consumer.kind in _PASS_THROUGH_KINDS:
            pending += consumers.get(consumer.name, [])
        else:
            kinds.add(consumer.kind)
    return frozenset(kinds)


def _producer_channels(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """Return each layer with the output channels of the last weight matrix before it, 0 for the first."""
    result, channels = [], 0
    for layer in layers:
        result.append((layer, channels))
        matrices = [p for p in layer.params if len(p.shape) > 1]
        if matrices:
            channels = matrices[0].shape[matrices[0].axis]
    return result


def _layers_with_weights(graph: WeightGraph) -> list[Layer]:
    return [layer for layer in graph.layers if layer.params]


def _layer_form(layer: Layer) -> Signature:
    return (layer.kind, tuple(sorted((p.role, len(p.shape)) for p in layer.params)))


def _param_shapes(layer: Layer) -> list[tuple[int, ...]]:
    return [p.shape for p in layer.params]
