"""Encode a whole network: latents, one embedding, one embedding per layer (spec section 5).

Encoders are a portfolio: `sane`, the autoencoder, and `statistics`, the baseline that is hard to beat. A
property head says which of them it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from sane_plugins.errors import UsageError
from sane_plugins.latent import checkpoint, codec
from sane_plugins.latent.model import SANE
from sane_plugins.tasks.statistics import PLACES, resample, slot_moments, statistics
from sane_plugins.weights import scale
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.tokens import slots

__all__ = [
    "ENCODERS", "EncodeOptions", "Encoder", "Encoding", "SaneEncoder", "StatisticsEncoder", "embed",
    "statistics",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How to encode: which encoder, which SANE file (the embedded one if None), window, halo, device."""

    encoder: str = "sane"
    model: Path | None = None
    window: int | None = None
    halo: int | None = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What an encoder says of one network.

    latents (T, L) with the half-open token range of each slot in `spans` (both empty where the encoder has
    no tokens), `embedding` (E,), `layers` (M, E') for the M slots in `names`, and where it came from.
    """

    latents: torch.Tensor
    spans: list[tuple[int, int]]
    embedding: torch.Tensor
    layers: torch.Tensor
    names: tuple[str, ...]
    encoder: str
    provenance: Mapping[str, str] = field(default_factory=dict)


class Encoder(Protocol):
    """Anything that encodes networks; `features` are what property heads read."""

    @property
    def name(self) -> str:
        """Return the name that options and heads use."""

    def encode(self, graph: WeightGraph, options: EncodeOptions) -> Encoding:
        """Encode a network. Raises `SourceError` where a weight is not finite."""

    def features(self, graph: WeightGraph, options: EncodeOptions) -> torch.Tensor:
        """Return features (F,), as many for every architecture."""


@dataclass(frozen=True)
class SaneEncoder:
    """The autoencoder; `model` stands in for the file that the options name."""

    model: SANE | None = None
    name: str = "sane"

    def encode(self, graph: WeightGraph, options: EncodeOptions) -> Encoding:
        """Return all latents; the embedding is their mean (paper section 3.4)."""
        model = self.model or load_model(options)
        latents = codec.encode(model, graph, window=options.window, halo=options.halo)
        return Encoding(
            latents=latents.values, spans=latents.spans, embedding=latents.values.mean(0),
            layers=torch.stack([latents.values[a:b].mean(0) for a, b in latents.spans]),
            names=_names(graph), encoder=self.name,
            provenance={"source": graph.source, "model": str(options.model or "embedded")},
        )  # fmt: skip

    def features(self, graph: WeightGraph, options: EncodeOptions) -> torch.Tensor:
        """Return mean and deviation of the latents, then slot means and scales along the depth."""
        found = self.encode(graph, options)
        latents = found.latents.double().cpu()
        slot = torch.cat([found.layers.double().cpu(), scale.fit(graph).side.double()], 1).numpy()
        along = torch.from_numpy(resample(list(slot), PLACES, slot.shape[1]).ravel())
        return torch.cat([latents.mean(0), latents.std(0, correction=0), along])


@dataclass(frozen=True)
class StatisticsEncoder:
    """Layer statistics as an encoder: no tokens, s(W) per slot, all statistics as embedding."""

    name: str = "statistics"

    def encode(self, graph: WeightGraph, options: EncodeOptions) -> Encoding:
        """Return the statistics; `layers` (M, 14) is s(W) of each slot's weight and bias."""
        return Encoding(
            latents=torch.zeros(0, 0), spans=[], embedding=self.features(graph, options),
            layers=torch.from_numpy(np.stack(slot_moments(graph))), names=_names(graph),
            encoder=self.name, provenance={"source": graph.source},
        )  # fmt: skip

    def features(self, graph: WeightGraph, options: EncodeOptions) -> torch.Tensor:  # noqa: ARG002
        """Return the layer statistics (F,)."""
        return statistics(graph)


ENCODERS: Mapping[str, Encoder] = {"sane": SaneEncoder(), "statistics": StatisticsEncoder()}


def embed(
    graph: WeightGraph, options: EncodeOptions | None = None,
    encoders: Mapping[str, Encoder] = ENCODERS,
) -> Encoding:  # fmt: skip
    """Encode a network with the encoder that the options name.

    Raises `UsageError` for an unknown encoder and `SourceError` where a weight is not finite.
    """
    options = options or EncodeOptions()
    if options.encoder not in encoders:
        raise UsageError(
            f"encoder '{options.encoder}'", "there is no such encoder",
            f"one of {', '.join(sorted(encoders))} is needed", "check the name, or install its plugin",
        )  # fmt: skip
    return encoders[options.encoder].encode(graph.require_finite(), options)


def _names(graph: WeightGraph) -> tuple[str, ...]:
    return tuple(slot.weight.key for slot in slots(graph))


def load_model(options: EncodeOptions) -> SANE:
    """Return the SANE that the options name, on their device; the embedded one if they name none."""
    if options.model is not None:
        return checkpoint.load(options.model, options.device)
    model = checkpoint.embedded()
    return model if options.device == "cpu" else deepcopy(model).to(options.device)
