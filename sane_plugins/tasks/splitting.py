"""Split images by class, the same way for the same generator."""

from __future__ import annotations

import torch


def stratified_split(
    labels: torch.Tensor, fraction: float, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sorted indices of a stratified split; classes of two or more images are in both parts."""
    kept_indices, held_out_indices = [], []
    counts = labels.unique(return_counts=True)[1].tolist()
    for members in labels.argsort(stable=True).split(counts):
        members = members[torch.randperm(len(members), generator=rng)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out_indices.append(members[:count])
        kept_indices.append(members[count:])
    return torch.cat(kept_indices).sort().values, torch.cat(held_out_indices).sort().values
