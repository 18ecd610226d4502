"""What a SANE divides out of a network before encoding, and puts back after decoding (spec section 2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sane_plugins.autoencoder.model import SANE
from sane_plugins.errors import SourceError
from sane_plugins.weights import (
    Scale,
    TokenBlock,
    WeightGraph,
    fit_scale,
    token_blocks,
    tokenize,
    undo_scale,
)


def scaled_blocks(
    model: SANE, graph: WeightGraph, device: torch.device | str = "cpu"
) -> Iterator[TokenBlock]:
    """Yield a network's tokens as the model reads them; lazily where each tensor's own scale is meant."""
    width = model.config.token_width
    if model.config.scale == "tensor":
        yield from token_blocks(graph, width, device)
        return
    layout, tokens = graph.token_layout(width), tokenize(graph.require_finite(), width, device)
    mean, deviation = _of_zoo(model, graph, len(layout.slots)).to(device).unbind(1)
    side = fit_scale(graph).side.to(device)
    for i, (start, stop) in enumerate(layout.spans):
        values = (tokens.values[start:stop].float() - mean[i]) / deviation[i]
        yield TokenBlock(i, values * tokens.mask[start:stop], side[i])


def rescaled(model: SANE, network: WeightGraph, side: torch.Tensor) -> WeightGraph:
    """Put the scale back into a decoded network; side (M, 4) is what was decoded of it."""
    if model.config.scale == "tensor":
        return undo_scale(network, Scale.from_side(side))
    found = _of_zoo(model, network, len(side)).cpu()
    return undo_scale(network, Scale(*(x[:, None].expand(-1, 2) for x in found.unbind(1))))


def _of_zoo(model: SANE, graph: WeightGraph, slots: int) -> torch.Tensor:
    """Return mean and deviation (M, 2) that are the same for all networks."""
    if model.config.scale == "none":
        return torch.tensor([[0.0, 1.0]]).repeat(slots, 1)
    found: torch.Tensor = model.get_buffer("zoo_scale")
    if len(found) != slots:
        raise SourceError(
            graph.source,
            f"it has {slots} weight matrices and vectors",
            f"this SANE knows the scale of {len(found)}, those of its one architecture",
            "use a SANE that divides out each tensor's own scale",
        )
    return found
