"""The canonical form of a network: one order of layers, and of channels, for all forms that it comes in.

The method: docs/explanation/sane.md, section 10.4.
"""

from __future__ import annotations

from dataclasses import replace

from sane_plugins.symmetry.canonical_channels import PermutedTensors, channel_order
from sane_plugins.symmetry.canonical_layers import canonical_layers
from sane_plugins.symmetry.permutations import permutation_groups
from sane_plugins.weights import WeightGraph


def canonical_form(graph: WeightGraph, *, largest_first: bool = False) -> WeightGraph:
    """Return an equivalent network whose layers and channels are in canonical order.

    It has the keys of the original. Channels are sorted by norm within each permutation group (there is none
    without topology): each tensor of a group is read once now, and again when it is used. What is computed of
    the canonical form is the same for a module, its files, and copies with permuted channels.
    """
    return sort_channels(canonical_layers(graph), largest_first=largest_first)


def sort_channels(ordered: WeightGraph, *, largest_first: bool = False) -> WeightGraph:
    """Return a network whose layers are in canonical order with its channels in theirs."""
    groups = permutation_groups(ordered)
    if not groups:
        return ordered
    order = channel_order(ordered, groups, -1 if largest_first else 1)
    return replace(ordered, tensors=PermutedTensors(ordered.tensors, groups, order))
