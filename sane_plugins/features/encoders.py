"""Encoders of whole networks: latents, a network embedding, and an embedding per layer.

The method: docs/explanation/sane.md, sections 5.3 and 5.5.
Two encoders are built in: `sane`, the autoencoder, and `statistics`, a strong baseline. A property head says
which of them it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch

from sane_plugins.arguments import require_field_types
from sane_plugins.atomic_files import naming
from sane_plugins.autoencoder import (
    SANE,
    Precision,
    WindowBatch,
    embedded_sane,
    encode_stream,
    load_sane,
    require_finite_result,
)
from sane_plugins.display import html_table
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.features import sane_features
from sane_plugins.features.layer_statistics import slot_moments, statistics
from sane_plugins.features.sane_features import LatentPool, is_probed
from sane_plugins.progress import Report, silent
from sane_plugins.symmetry import canonical_form, canonical_layers, sort_channels
from sane_plugins.weights import WeightGraph


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How to encode: encoder name, SANE file (the embedded one if None), window, halo, device.

    `latents` keeps the latents of all tokens, drops them (so that memory does not grow with the network), or
    names a new file to which they are written row by row as float32. `precision` is that of the
    autoencoder's matrices: `auto` uses bfloat16 on CPUs that support it. A host reports to its plugins
    unless `report` is given.
    """

    encoder: str = "sane"
    sane: Path | None = None
    window: int | None = None
    halo: int | None = None
    device: str = "cpu"
    latents: bool | Path = True
    precision: Precision = "auto"
    report: Report = field(default=silent, compare=False, repr=False)

    def __post_init__(self) -> None:
        require_field_types(self)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Encoding:
    """Latents and embeddings of one network, in its canonical form (`symmetry.canonical_form`).

    `embedding` (E,), `layers` (M, E') for the M slots in `names`, and provenance. latents (T, L), with the
    half-open token range of each slot in `spans`, are None if they were not kept; both are empty if the
    encoder has no tokens.
    """

    latents: torch.Tensor | None
    spans: Sequence[tuple[int, int]]
    embedding: torch.Tensor
    layers: torch.Tensor
    names: tuple[str, ...]
    encoder: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Return the number of encoded tokens."""
        return self.spans[-1][1] if self.spans else 0

    def __repr__(self) -> str:
        return (
            f"Encoding(source={self.provenance.get('source', '')!r}, encoder={self.encoder!r},"
            f" embedding={tuple(self.embedding.shape)}, layers={tuple(self.layers.shape)},"
            f" tokens={self.tokens})"
        )

    def _repr_html_(self) -> str:
        """Return the encoding as a table for notebooks: a row per slot."""
        spans = self.spans or [(0, 0)] * len(self.names)
        rows = [
            (name, stop - start, f"{float(layer.norm()):.3g}")
            for name, (start, stop), layer in zip(self.names, spans, self.layers, strict=True)
        ]
        return html_table(repr(self), ("tensor", "tokens", "norm of its embedding"), rows)


class Encoder(Protocol):
    """Interface of network encoders; `features` are the input of property heads."""

    @property
    def name(self) -> str:
        """Return the name that options and heads use."""

    def encode(self, graph: WeightGraph, options: EncodeOptions) -> Encoding:
        """Encode a network. Raises `SourceError` if a weight is not finite."""

    def features(self, graph: WeightGraph, options: EncodeOptions) -> torch.Tensor:
        """Return features (F,), where F is the same for every architecture."""


@dataclass(frozen=True)
class SaneEncoder:
    """The autoencoder; `model` stands in for the file that the options name."""

    model: SANE | None = None
    name: str = "sane"

    def encode(self, graph: WeightGraph, options: EncodeOptions) -> Encoding:
        """Return latents, if kept, and embeddings, the means of latents (paper section 3.4)."""
        model = self.model or load_model(options)
        graph = canonical_form(graph)
        pool = LatentPool(graph, model)
        with _latent_store(options.latents, pool, model) as (take, latents):
            _encode_stream(model, graph, take, options)
        require_finite_result(graph, pool.mean.float())
        return Encoding(
            latents=latents,
            spans=pool.spans,
            embedding=pool.mean.float(),
            layers=pool.layers.float(),
            names=_slot_names(graph),
            encoder=self.name,
            provenance={"source": graph.source, "model": str(options.sane or "embedded")},
        )

    def features(self, graph: WeightGraph, options: EncodeOptions) -> torch.Tensor:
        """Return slot scales along the depth, and the decoded network's responses to random inputs."""
        model = self.model or load_model(options)
        latents = None
        graph = canonical_layers(graph)
        if is_probed(graph):
            graph = sort_channels(graph)
            pool = LatentPool(graph, model)
            with _latent_store(True, pool, model) as (take, latents):
                _encode_stream(model, graph, take, options)
            require_finite_result(graph, pool.mean.float())
        features = sane_features.features(
            model, graph, latents, window=options.window, halo=options.halo
        )
        return require_finite_result(graph, features)


@contextmanager
def _latent_store(
    destination: bool | Path, pool: LatentPool, model: SANE
) -> Iterator[tuple[Callable[[WindowBatch], None], torch.Tensor | None]]:
    """Yield a consumer that pools window batches and stores latents in memory, in a file, or nowhere."""
    if destination is False:
        yield pool.take, None
    elif destination is True:
        latents = model.latents_out.weight.new_empty(pool.spans[-1][1], model.config.latent_width)

        def keep(batch: WindowBatch) -> None:
            pool.take(batch)
            latents[batch.start : batch.start + len(batch.latents)] = batch.latents

        yield keep, latents
    else:
        with Path(destination).open("wb") as file:

            def write(batch: WindowBatch) -> None:
                pool.take(batch)
                with naming(Path(destination)):
                    file.write(batch.latents.cpu().numpy().tobytes())
                    file.flush()

            yield write, None


def _encode_stream(
    model: SANE, graph: WeightGraph, take: Callable[[WindowBatch], None], options: EncodeOptions
) -> None:
    encode_stream(
        model,
        graph,
        take,
        window=options.window,
        halo=options.halo,
        precision=options.precision,
        report=options.report,
    )


@dataclass(frozen=True)
class StatisticsEncoder:
    """Layer statistics as an encoder: no tokens, s(W) per slot, all statistics as embedding."""

    name: str = "statistics"

    def encode(self, graph: WeightGraph, options: EncodeOptions) -> Encoding:
        """Return the statistics; `layers` (M, 14) is s(W) of each slot's weight and bias."""
        graph = canonical_layers(graph.require_finite())
        return Encoding(
            latents=torch.zeros(0, 0, dtype=torch.float32),
            spans=[],
            embedding=self.features(graph, options),
            layers=torch.from_numpy(np.stack(slot_moments(graph))),
            names=_slot_names(graph),
            encoder=self.name,
            provenance={"source": graph.source},
        )

    def features(self, graph: WeightGraph, options: EncodeOptions) -> torch.Tensor:  # noqa: ARG002
        """Return the layer statistics (F,)."""
        return statistics(canonical_form(graph))


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {"sane": SaneEncoder(), "statistics": StatisticsEncoder()}
)


def find_encoder(name: str, encoders: Mapping[str, Encoder]) -> Encoder:
    """Return an encoder by name. Raises `UsageError` where there is none."""
    if name not in encoders:
        raise UsageError(
            f"encoder '{name}'",
            "there is no such encoder",
            f"one of {', '.join(sorted(encoders))} is needed",
            "check the name, or install its plugin",
        ).as_unknown()
    return encoders[name]


def embed(
    graph: WeightGraph,
    options: EncodeOptions | None = None,
    encoders: Mapping[str, Encoder] = ENCODERS,
) -> Encoding:
    """Encode a network with the encoder named in the options.

    Raises `UsageError` for an unknown encoder and `SourceError` if a weight is not finite.
    """
    options = options or EncodeOptions()
    encoder = find_encoder(options.encoder, encoders)
    try:
        return encoder.encode(graph, options)
    except SourceError:
        # Looked for only now: weights are read once where all of them are finite.
        finite = graph.require_finite()
        if finite is graph:
            raise
    return encoder.encode(finite, options)


def _slot_names(graph: WeightGraph) -> tuple[str, ...]:
    return tuple(slot.weight.key for slot in graph.slots)


def load_model(options: EncodeOptions) -> SANE:
    """Return the SANE named in the options, by default the embedded one, on the requested device."""
    if options.sane is not None:
        return load_sane(options.sane, options.device)
    model = embedded_sane()
    return model if options.device == "cpu" else deepcopy(model).to(options.device)
