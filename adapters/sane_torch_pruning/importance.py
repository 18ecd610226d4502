"""Scores of channels as an importance of Torch-Pruning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch_pruning import (
    Group,
    prune_conv_in_channels,
    prune_conv_out_channels,
    prune_linear_in_channels,
    prune_linear_out_channels,
)
from torch_pruning.pruner.importance import Importance

from sane_plugins import UsageError

ChannelScores = Mapping[nn.Module, torch.Tensor]
"""A score (C,) for each channel that a convolution or linear layer reads, or writes."""
_READING = (prune_conv_in_channels, prune_linear_in_channels)
_WRITING = (prune_conv_out_channels, prune_linear_out_channels)


class _ScoredImportance(Importance):
    """Looks up a channel's scores and adds them up over the layers of its group."""

    def __init__(self, scores: ChannelScores, *, are_written: bool) -> None:
        self._scores, self._functions = scores, _WRITING if are_written else _READING

    def __call__(self, group: Group) -> torch.Tensor:
        """Return a score for each channel of a group, (C,)."""
        total = torch.zeros(len(group[0].idxs))
        for item in group:
            layer, roots = item.dep.layer, item.root_idxs
            if item.dep.pruning_fn not in self._functions or layer not in self._scores:
                continue
            scores = self._scores[layer].float().cpu()
            if max(item.idxs) >= len(scores):
                raise UsageError(
                    "Torch-Pruning",
                    f"a group asks for channel {max(item.idxs)} of a layer with {len(scores)} scores",
                    "scores are those of the network before it was pruned",
                    "compute them anew before each step of pruning",
                )
            total.scatter_add_(0, torch.tensor(roots), scores[torch.tensor(item.idxs)])
        return total


def channel_importance(scores: ChannelScores, *, are_written: bool = False) -> Importance:
    """Return an importance, to give to any pruner of Torch-Pruning, of scores of one network's channels.

    Scores are of the channels that a layer reads (`fisher_scores`, `border_scores`), or, if `are_written`, of
    those that it writes (`latent_scores`). Those of a group's layers are added up.
    """
    return _ScoredImportance(scores, are_written=are_written)
