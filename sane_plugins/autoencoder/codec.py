"""Whole networks to latents and back, window by window (docs/explanation/sane.md, sections 5.1 and 5.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sane_plugins.autoencoder import streaming
from sane_plugins.autoencoder.bfloat16 import Precision, dtype_of
from sane_plugins.autoencoder.model import SANE
from sane_plugins.autoencoder.normalization import rescaled
from sane_plugins.autoencoder.positions import TokenLayout
from sane_plugins.autoencoder.streaming import WindowBatch
from sane_plugins.autoencoder.windows import cut, join
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.weights import (
    Tokens,
    WeightGraph,
    detokenize,
    slots,
    token_blocks,
    token_positions,
    tokenize,
)

_BATCH = 64


@dataclass(frozen=True, eq=False, repr=False)
class Latents(ShortRepr):
    """Latents (T, L) of one network, with the half-open range of tokens of each slot."""

    values: torch.Tensor
    spans: list[tuple[int, int]]


def encode(
    model: SANE,
    graph: WeightGraph,
    *,
    window: int | None = None,
    halo: int | None = None,
    precision: Precision = "float32",
) -> Latents:
    """Encode a network of any length on the model's device. Raises `SourceError` on NaN weights."""
    layout = TokenLayout.of(slots(graph), model.config.token_width)
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
    """Encode a network and hand over its latents run by run, in order; see `autoencoder.streaming`."""
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
    tokens = tokenize(template, model.config.token_width, _device(model))
    if len(tokens) != len(latents):
        raise SourceError(
            template.source,
            f"{len(latents)} latents were given",
            f"it takes {len(tokens)}",
            "match the latents to the network's tokens first",
        )
    layout = TokenLayout.of(slots(template), model.config.token_width, _device(model))
    places = model.config.places(layout, 0, len(tokens))
    parts = [cut(x, window, halo) for x in (latents.to(_device(model)), places)]
    narrow = dtype_of(precision, _device(model))
    with torch.autocast(_device(model).type, narrow, enabled=narrow != torch.float32):
        decoded = [model.decode(*batch) for batch in _batches(*parts)]
    values, side = (
        join(torch.cat(part).float(), len(tokens), window, halo)
        for part in zip(*decoded, strict=True)
    )
    slot_side = torch.stack([side[start:stop].mean(0) for start, stop in tokens.spans])
    values = values.to(tokens.values.dtype)
    network = detokenize(Tokens(values, tokens.mask, tokens.positions), template)
    return rescaled(model, network, slot_side.cpu())


def standardized_tokens(
    graph: WeightGraph, width: int, device: torch.device | str = "cpu"
) -> tuple[Tokens, torch.Tensor]:
    """Return a network's tokens, each slot standardised, and the side information (T, 4) of each."""
    found = list(token_blocks(graph, width, device))
    values = torch.cat([block.values for block in found])
    side = torch.cat([block.side.expand(len(block.values), -1) for block in found])
    parts = slots(graph)
    mask = torch.cat([slot.mask(width) for slot in parts])
    return Tokens(values, mask.to(device), token_positions(parts, width).to(device)), side


def _batches(*parts: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    yield from zip(*(part.split(_BATCH) for part in parts), strict=True)


def _window(model: SANE, window: int | None, halo: int | None) -> tuple[int, int]:
    config = model.config
    return window or config.window, config.halo if halo is None else halo


def _device(model: SANE) -> torch.device:
    return next(model.parameters()).device
