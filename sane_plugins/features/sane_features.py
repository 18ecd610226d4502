"""What property heads read of a SANE: the scale of every slot, and what the decoded network does.

Means and deviations of latents are left out on purpose: with the few hundred networks that a zoo has, heads
predicted worse with them than without (benchmarks/properties-tried.md). What latents know of a network's
function shows when they are decoded and the result is probed (see `features.random_probes`).
The method: docs/explanation/sane.md, section 5.5.
"""

from __future__ import annotations

import numpy as np
import torch

from sane_plugins.autoencoder import SANE, WindowBatch, decode
from sane_plugins.features.layer_statistics import (
    PLACES,
    Array,
    by_role,
    decisions,
    is_chain,
    resample,
)
from sane_plugins.features.random_probes import DECISIONS
from sane_plugins.symmetry import PermutationGroup, permutation_groups, permute
from sane_plugins.weights import SIDE, WeightGraph

_LARGEST = 2**24
_FAR = 1e6


class LatentPool:
    """Mean latents and side information of each slot, pooled from batches of windows as they come."""

    def __init__(self, graph: WeightGraph, model: SANE) -> None:
        layout = graph.token_layout(model.config.token_width)
        sizes = torch.tensor([stop - start for start, stop in layout.spans])
        like = model.latents_out.weight
        self.spans, self._sizes = layout.spans, sizes.to(like.device)[:, None]
        self._sums = like.new_zeros(len(sizes), model.config.latent_width, dtype=torch.float64)
        self.side = like.new_zeros(len(sizes), SIDE, dtype=torch.float64)

    def take(self, batch: WindowBatch) -> None:
        """Add the latents of a batch."""
        self._sums.index_add_(0, batch.slot, batch.latents.double())
        self.side[batch.slot] = batch.side.double()

    @property
    def mean(self) -> torch.Tensor:
        """Return the mean latent (L,)."""
        return self._sums.sum(0) / self._sizes.sum()

    @property
    def layers(self) -> torch.Tensor:
        """Return the mean latent of each slot, (M, L)."""
        return self._sums / self._sizes


def is_probed(graph: WeightGraph) -> bool:
    """Tell whether the decoded network is probed: its matrices are one chain, and not too large to decode."""
    return graph.size <= _LARGEST and is_chain(graph)


def sort_channels(graph: WeightGraph) -> WeightGraph:
    """Return the same function with the channels of each permutation group sorted by norm.

    The autoencoder reads channels in their order, so this makes what it decodes independent of the order that
    they came in. A source without topology stays as it is.
    """
    groups = permutation_groups(graph)
    return permute(graph, {group.name: _by_norm(graph, group) for group in groups}, groups)


def features(
    model: SANE,
    graph: WeightGraph,
    side: torch.Tensor,
    latents: torch.Tensor | None,
    *,
    window: int | None,
    halo: int | None,
) -> torch.Tensor:
    """Return features (F,) float64 of a network: scales along its depth, and the decoded one's decisions.

    side (M, 4) of its slots; latents (T, L), or None where it `is_probed` not: then its decisions are 0.
    """
    slots = list(zip(graph.slots, side.cpu().numpy(), strict=True))
    matrices = [row for slot, row in slots if len(slot.weight.shape) > 1]
    vectors = [(slot.weight.role, row[:2]) for slot, row in slots if len(slot.weight.shape) < 2]
    decided = np.zeros(DECISIONS)
    if latents is not None:
        decided = _decisions(decode(model, latents, graph, window=window, halo=halo))
    along = resample(matrices, PLACES, SIDE).ravel()
    return torch.from_numpy(np.concatenate([along, by_role(vectors, 2), decided]))


def _by_norm(graph: WeightGraph, group: PermutationGroup) -> torch.Tensor:
    """Return the channels of a group, within its blocks, by the sum of squares of all values they own."""
    norms = torch.zeros(group.size, dtype=torch.float64)
    for part in group.slices:
        tensor = graph.tensors[part.key].detach().cpu().double().movedim(part.axis, 0)
        own = tensor[part.offset : part.offset + part.length]
        norms += own.reshape(group.size, -1).square().sum(1)
    blocks = norms.view(group.blocks, -1)
    first = torch.arange(group.blocks)[:, None] * blocks.shape[1]
    return (blocks.argsort(dim=1, stable=True) + first).flatten()


def _decisions(decoded: WeightGraph) -> Array:
    """Return what a decoded network decides; a decoded scale may be too large for its numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(np.clip(decisions(decoded), -_FAR, _FAR))
