"""Channels that carry nothing: rows of zeros, or rows that their norm scales to nothing.

The method: docs/explanation/sane.md, section 9.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sane_plugins.health.findings import Finding, some
from sane_plugins.health.tensor_profile import Array, TensorProfile
from sane_plugins.weights import Kind, Layer, Param, WeightGraph

_NEXT_TO_NOTHING = 1e-4  # of the median channel
_MOST_DEAD = 0.5  # of a layer's channels: decay kills up to a quarter in networks that work
_LEAST_CHANNELS = 4
_EPSILON = 1e-5  # torch's, in the root of a norm
_KINDS: tuple[Kind, ...] = ("conv", "transposed_conv", "linear", "unknown")


def find_dead_channels(
    graph: WeightGraph, profiles: Mapping[str, TensorProfile], vectors: Mapping[str, Array]
) -> Iterator[Finding]:
    """Yield layers of which most channels are dead as faults, and the number in all others as a note.

    vectors: the values of norms' scales and variances, by key.
    """
    dead: dict[str, tuple[int, int]] = {}
    for layer, norm in _with_norms(graph):
        matrices = [p for p in layer.params if len(p.shape) > 1 and p.key in profiles]
        if layer.kind not in _KINDS or len(matrices) != 1 or profiles[matrices[0].key].unusable:
            continue
        strength = np.sqrt(profiles[matrices[0].key].row_powers)
        if len(strength) < _LEAST_CHANNELS or not strength.any():  # all zeros are a constant
            continue
        strength = strength * _gain(norm, vectors, len(strength))
        typical = np.median(strength[strength > 0]) if strength.any() else 0.0
        if count := int((strength <= _NEXT_TO_NOTHING * typical).sum()):
            dead[layer.name] = count, len(strength)
    mostly = [name for name, (count, total) in dead.items() if count > _MOST_DEAD * total]
    for name in mostly:
        count, total = dead[name]
        text = f"{name}: {count} of {total} channels carry nothing"
        yield Finding(kind="dead_channels", severity="fault", text=text, places=(name,))
    if few := [name for name in dead if name not in mostly]:
        count, total = (sum(dead[name][i] for name in few) for i in (0, 1))
        text = f"{count:,} of {total:,} channels of {some(few)} carry nothing"
        yield Finding(kind="dead_channels", severity="note", text=text, places=tuple(few))


def _with_norms(graph: WeightGraph) -> Iterator[tuple[Layer, Layer | None]]:
    """Yield each layer with the norm that alone reads it, or that follows where no inputs are known."""
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    following = [*graph.layers[1:], None]
    for layer, after in zip(graph.layers, following, strict=True):
        candidates = readers.get(layer.name, []) if graph.has_topology else [after]
        norm = candidates[0] if len(candidates) == 1 else None
        yield layer, norm if norm is not None and norm.kind == "norm" else None


def _gain(norm: Layer | None, vectors: Mapping[str, Array], channels: int) -> Array:
    """Return by how much a norm multiplies each channel (C,); ones where it is another's."""
    roles: dict[str, Param] = {p.role: p for p in norm.params} if norm else {}
    scale, variance = (
        vectors.get(roles[role].key) if role in roles else None for role in ("scale", "running_var")
    )
    gain = np.ones(channels)
    if scale is not None and len(scale) == channels:
        gain = np.abs(scale)
    if variance is not None and len(variance) == channels:
        gain = gain / np.sqrt(np.maximum(variance, 0) + _EPSILON)
    return gain
