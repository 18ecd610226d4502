"""Whole networks to latents and back, window by window (spec section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sane_plugins.autoencoder import streaming
from sane_plugins.autoencoder.bfloat16 import Precision, dtype_of
from sane_plugins.autoencoder.model import SANE
from sane_plugins.autoencoder.normalization import rescaled
from sane_plugins.autoencoder.streaming import WindowBatch
from sane_plugins.autoencoder.windows import cut, join
from sane_plugins.errors import SourceError
from sane_plugins.weights import (
    Tokens,
    WeightGraph,
    token_blocks,
    token_tensors,
)

_BATCH = 64


@dataclass(frozen=True)
class Latents:
    """Latents (T, L) of one network, with the half-open range of tokens of each slot."""

    values: torch.Tensor
    spans: tuple[tuple[int, int], ...]


def encode(
    model: SANE,
    graph: WeightGraph,
    *,
    window: int | None = None,
    halo: int | None = None,
    precision: Precision = "float32",
) -> Latents:
    """Encode a network of any length on the model's device. Raises `SourceError` on NaN weights."""
    layout = graph.token_layout(model.config.token_width)
    values = torch.empty(len(layout), model.config.latent_width, device=_device(model))

    def keep(run: WindowBatch) -> None:
        values[run.start : run.start + len(run.latents)] = run.latents

    walk(model, graph, keep, window=window, halo=halo, precision=precision)
    return Latents(values, layout.spans)


def walk(
    model: SANE,
    graph: WeightGraph,
    take: Callable[[WindowBatch], None],
    *,
    window: int | None = None,
    halo: int | None = None,
    precision: Precision = "float32",
) -> None:
    """Encode a network and hand over its latents run by run, in order; see `latent.stream`."""
    streaming.walk(model, graph, take, *_window(model, window, halo), precision)


@torch.no_grad()
def decode(
    model: SANE,
    latents: torch.Tensor,
    template: WeightGraph,
    *,
    window: int | None = None,
    halo: int | None = None,
    precision: Precision = "float32",
) -> WeightGraph:
    """Decode latents (T, L) into a network of the template's shapes, its scale restored.

    `precision` is that of matrix products. The side information that the tokens of a slot agree on, their
    mean, is the slot's scale.
    """
    window, halo = _window(model, window, halo)
    layout, device = template.token_layout(model.config.token_width), _device(model)
    if len(layout) != len(latents):
        raise SourceError(
            template.source,
            f"{len(latents)} latents were given",
            f"it takes {len(layout)}",
            "match the latents to the network's tokens first",
        )
    places = model.config.places(layout.to(device), 0, len(layout))
    parts = [cut(x, window, halo) for x in (latents.to(device), places)]
    narrow = dtype_of(precision, device)
    with torch.autocast(device.type, narrow, enabled=narrow != torch.float32):
        decoded = [model.decode(*batch) for batch in _batches(*parts)]
    values, side = (
        join(torch.cat(part).float(), len(layout), window, halo)
        for part in zip(*decoded, strict=True)
    )
    slot_side = torch.stack([side[start:stop].mean(0) for start, stop in layout.spans])
    network = template.replace(token_tensors(values, layout))
    return rescaled(model, network, slot_side.cpu())


def standardized_tokens(
    graph: WeightGraph, width: int, device: torch.device | str = "cpu"
) -> tuple[Tokens, torch.Tensor]:
    """Return a network's tokens, each slot standardised, and the side information (T, 4) of each."""
    found = list(token_blocks(graph, width, device))
    values = torch.cat([block.values for block in found])
    side = torch.cat([block.side.expand(len(block.values), -1) for block in found])
    layout = graph.token_layout(width)
    return Tokens(values, layout.mask(device), layout.to(device).positions()), side


def _batches(*parts: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    yield from zip(*(part.split(_BATCH) for part in parts), strict=True)


def _window(model: SANE, window: int | None, halo: int | None) -> tuple[int, int]:
    config = model.config
    return window or config.window, config.halo if halo is None else halo


def _device(model: SANE) -> torch.device:
    return next(model.parameters()).device
