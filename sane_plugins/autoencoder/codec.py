"""Encode whole networks to latents and decode them, using halo windows.

The method: docs/explanation/sane.md, sections 5.1 and 5.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from sane_plugins.autoencoder.bfloat16 import Precision, precision_dtype
from sane_plugins.autoencoder.halo_windows import cut_windows, join_windows
from sane_plugins.autoencoder.model import SANE
from sane_plugins.autoencoder.normalization import undo_standardization
from sane_plugins.autoencoder.streaming import WindowBatch, encode_stream, require_finite_result
from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError
from sane_plugins.progress import Report, silent
from sane_plugins.weights import TokenLayout, WeightGraph, token_tensors

_BATCH = 64


@dataclass(frozen=True, eq=False, repr=False)
class Latents(ShortRepr):
    """Latents (T, L) of one network, with the half-open token range of each slot."""

    values: torch.Tensor
    spans: tuple[tuple[int, int], ...]


def encode(
    model: SANE,
    graph: WeightGraph,
    *,
    window: int | None = None,
    halo: int | None = None,
    precision: Precision = "float32",
    report: Report = silent,
) -> Latents:
    """Encode a network of any length on the model's device. Raises `SourceError` on NaN weights."""
    layout = graph.token_layout(model.config.token_width)
    values = torch.empty(
        len(layout), model.config.latent_width, device=_device(model), dtype=torch.float32
    )

    def keep(batch: WindowBatch) -> None:
        values[batch.start : batch.start + len(batch.latents)] = batch.latents

    encode_stream(model, graph, keep, window=window, halo=halo, precision=precision, report=report)
    return Latents(require_finite_result(graph, values), layout.spans)


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

    `precision` is that of matrix products. A slot's scale is the mean of its tokens' side information.
    """
    window, halo = model.config.window_and_halo(window, halo)
    layout, device = template.token_layout(model.config.token_width), _device(model)
    if len(layout) != len(latents):
        raise SourceError(
            template.source,
            f"{len(latents)} latents were given",
            f"it takes {len(layout)}",
            "match the latents to the network's tokens first",
        )
    dtype = precision_dtype(precision, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        values, side = decode_tokens(model, latents, layout, window, halo)
    slot_side = torch.stack([side[start:stop].mean(0) for start, stop in layout.spans])
    # 8-bit floats would round what is still to be brought to scale.
    is_narrow = any(param.dtype.itemsize == 1 for param in template.params)
    tensors = token_tensors(values, layout, torch.float32 if is_narrow else None)
    network = template.replace(tensors)
    return undo_standardization(model, network, slot_side.cpu())


def decode_tokens(
    model: SANE, latents: torch.Tensor, layout: TokenLayout, window: int, halo: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode latents (T, L) into the values (T, D) and the side (T, 4) of tokens; gradients flow.

    Of a network of many windows, what lies between is not kept for the gradients but computed again.
    """
    device = _device(model)
    positions = model.config.positions(layout.to(device), 0, len(layout))
    parts = [cut_windows(x, window, halo) for x in (latents.to(device), positions)]
    again = latents.requires_grad and torch.is_grad_enabled() and len(parts[0]) > _BATCH
    decode = partial(checkpoint, model.decode, use_reentrant=False) if again else model.decode
    decoded = [decode(*batch) for batch in _batches(*parts)]
    values, side = (
        join_windows(torch.cat(part).float(), len(layout), window, halo)
        for part in zip(*decoded, strict=True)
    )
    return values, side


def _batches(*parts: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    yield from zip(*(part.split(_BATCH) for part in parts), strict=True)


def _device(model: SANE) -> torch.device:
    return next(model.parameters()).device
