"""Torch-Pruning: importances of channels by its protocol, and new initial weights for what it has pruned.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from sane_torch_pruning.importance import ChannelScores, channel_importance
from sane_torch_pruning.scores import border_scores, fisher_scores, latent_scores

__all__ = [
    "ChannelScores",
    "border_scores",
    "channel_importance",
    "fisher_scores",
    "latent_scores",
]
