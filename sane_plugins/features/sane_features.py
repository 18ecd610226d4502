"""SANE features for property heads: the scale of every slot, and the decoded network's decisions.

Means and deviations of latents are deliberately left out: with the few hundred networks of a zoo, heads
predicted worse with them (benchmarks/properties-tried.md). Information on the network's function is extracted
by decoding the latents and probing the result (see `features.random_probes`).
The method: docs/explanation/sane.md, section 5.5.
"""

from __future__ import annotations

import numpy as np
import torch

from sane_plugins.autoencoder import SANE, WindowBatch, decode, standardized_blocks
from sane_plugins.features.layer_statistics import (
    PLACES,
    Array,
    by_role,
    decisions,
    is_chain,
    resample,
)
from sane_plugins.features.random_probes import DECISIONS
from sane_plugins.weights import SIDE, WeightGraph

_MAX_PROBED_SIZE = 2**24
_MAX_DECISION = 1e6


class LatentPool:
    """Mean latents of each slot, pooled incrementally from window batches."""

    def __init__(self, graph: WeightGraph, model: SANE) -> None:
        layout = graph.token_layout(model.config.token_width)
        sizes = torch.tensor([stop - start for start, stop in layout.spans])
        like = model.latents_out.weight
        self.spans, self._sizes = layout.spans, sizes.to(like.device)[:, None]
        self._sums = like.new_zeros(len(sizes), model.config.latent_width, dtype=torch.float64)

    def take(self, batch: WindowBatch) -> None:
        """Add the latents of a batch."""
        self._sums.index_add_(0, batch.slot, batch.latents.double())

    @property
    def mean(self) -> torch.Tensor:
        """Return the mean latent (L,)."""
        return self._sums.sum(0) / self._sizes.sum()

    @property
    def layers(self) -> torch.Tensor:
        """Return the mean latent of each slot, (M, L)."""
        return self._sums / self._sizes


def is_probed(graph: WeightGraph) -> bool:
    """Return whether the decoded network is probed: its matrices form a chain and it is small enough."""
    return graph.size <= _MAX_PROBED_SIZE and is_chain(graph)


def features(
    model: SANE,
    graph: WeightGraph,
    latents: torch.Tensor | None,
    *,
    window: int | None,
    halo: int | None,
) -> torch.Tensor:
    """Return features (F,) float64 of a network: scales along its depth, and the decoded one's decisions.

    latents (T, L), or None if it is not probed: its decisions are then 0.
    """
    slots = list(zip(graph.slots, _sides(model, graph), strict=True))
    matrices = [row for slot, row in slots if len(slot.weight.shape) > 1]
    vectors = [(slot.weight.role, row[:2]) for slot, row in slots if len(slot.weight.shape) < 2]
    network_decisions = np.zeros(DECISIONS)
    if latents is not None:
        network_decisions = _bounded_decisions(
            decode(model, latents, graph, window=window, halo=halo)
        )
    scales = resample(matrices, PLACES, SIDE).ravel()
    return torch.from_numpy(np.concatenate([scales, by_role(vectors, 2), network_decisions]))


def _sides(model: SANE, graph: WeightGraph) -> Array:
    """Return the side information (M, 4) of the slots."""
    sides = {block.slot: block.side for block in standardized_blocks(model, graph)}
    return torch.stack([sides[i] for i in range(len(graph.slots))]).double().numpy()


def _bounded_decisions(decoded: WeightGraph) -> Array:
    """Return a decoded network's decisions, clipped because decoded scales may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(np.clip(decisions(decoded), -_MAX_DECISION, _MAX_DECISION))
