"""Standardise weights as a SANE reads them, and undo it after decoding.

The method: docs/explanation/sane.md, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sane_plugins.autoencoder.model import SANE
from sane_plugins.errors import SourceError
from sane_plugins.weights import (
    Scale,
    TokenBlock,
    Tokens,
    WeightGraph,
    fit_scale,
    token_blocks,
    tokenize,
    undo_scale,
)


def standardized_blocks(
    model: SANE, graph: WeightGraph, device: torch.device | str = "cpu"
) -> Iterator[TokenBlock]:
    """Yield a network's tokens standardised for the model; lazily if the scale is per tensor."""
    width = model.config.token_width
    if model.config.scale == "tensor":
        yield from token_blocks(graph, width, device)
        return
    layout, tokens = graph.token_layout(width), tokenize(graph.require_finite(), width, device)
    mean, deviation = _shared_scale(model, graph, len(layout.slots)).to(device).unbind(1)
    side = fit_scale(graph).side.to(device)
    for i, (start, stop) in enumerate(layout.spans):
        values = (tokens.values[start:stop].float() - mean[i]) / deviation[i]
        yield TokenBlock(i, values * tokens.mask[start:stop], side[i])


def standardized_tokens(
    graph: WeightGraph, width: int, device: torch.device | str = "cpu"
) -> tuple[Tokens, torch.Tensor]:
    """Return a network's tokens, each slot standardised, and the side information (T, 4) of each."""
    blocks = list(token_blocks(graph, width, device))
    values = torch.cat([block.values for block in blocks])
    side = torch.cat([block.side.expand(len(block.values), -1) for block in blocks])
    layout = graph.token_layout(width)
    return Tokens(values, layout.mask(device), layout.to(device).positions()), side


def undo_standardization(model: SANE, network: WeightGraph, side: torch.Tensor) -> WeightGraph:
    """Restore the scale of a decoded network from its decoded side information (M, 4)."""
    if model.config.scale == "tensor":
        return undo_scale(network, Scale.from_side(side))
    shared = _shared_scale(model, network, len(side)).cpu()
    return undo_scale(network, Scale(*(x[:, None].expand(-1, 2) for x in shared.unbind(1))))


def _shared_scale(model: SANE, graph: WeightGraph, slots: int) -> torch.Tensor:
    """Return the mean and deviation (M, 2) shared by all networks."""
    if model.config.scale == "none":
        return torch.tensor([[0.0, 1.0]], dtype=torch.float32).repeat(slots, 1)
    shared: torch.Tensor = model.get_buffer("zoo_scale")
    if len(shared) != slots:
        raise SourceError(
            graph.source,
            f"it has {slots} weight matrices and vectors",
            f"this SANE knows the scale of {len(shared)}, those of its one architecture",
            "use a SANE that divides out each tensor's own scale",
        )
    return shared
