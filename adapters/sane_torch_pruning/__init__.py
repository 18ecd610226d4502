"""Torch-Pruning: importances of channels by its protocol, and new initial weights for what it has pruned."""

from sane_torch_pruning.importance import ChannelScores, channel_importance
from sane_torch_pruning.scores import border_scores, fisher_scores, latent_scores

__all__ = [
    "ChannelScores",
    "border_scores",
    "channel_importance",
    "fisher_scores",
    "latent_scores",
]
