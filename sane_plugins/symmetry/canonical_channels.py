"""One order of a network's channels: by norm, and by everything else where norms are equal.

Legend: C channels of one group.
The method: docs/explanation/sane.md, section 10.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from sane_plugins.symmetry.channel_colors import refine
from sane_plugins.symmetry.invariant_content import squared_norms
from sane_plugins.symmetry.permutation_group import AxisSlice, PermutationGroup
from sane_plugins.weights import WeightGraph

_Slices = dict[str, list[tuple[PermutationGroup, AxisSlice]]]


def channel_order(
    graph: WeightGraph, groups: Sequence[PermutationGroup], sign: int = 1
) -> dict[str, torch.Tensor]:
    """Return the permutation of each group that sorts its channels by `sign` times norm, within its blocks.

    The norm is that of all values that a channel owns. Equal norms are told apart by what the channels hold;
    channels that hold the same may be in any order.
    """
    norms = _norms(graph, groups)
    tied = [group for group in groups if _has_ties(group, norms[group.name])]
    colors = refine(graph, groups, norms, tied) if tied else {}
    return {
        group.name: _sorted_in_blocks(group, sign * norms[group.name], colors.get(group.name))
        for group in groups
    }


class PermutedTensors(Mapping[str, torch.Tensor]):
    """Tensors with their channels permuted, each when it is looked up."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        groups: Sequence[PermutationGroup],
        order: Mapping[str, torch.Tensor],
    ) -> None:
        self._tensors, self._order = tensors, order
        self._slices = slices_by_tensor(groups)

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._tensors[key]
        for group, part in self._slices.get(key, ()):
            index = part.index(self._order[group.name], tensor.shape[part.axis])
            tensor = tensor.detach().index_select(part.axis, index.to(tensor.device))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def slices_by_tensor(groups: Sequence[PermutationGroup]) -> _Slices:
    """Return what the groups permute in each tensor."""
    slices: _Slices = {}
    for group in groups:
        for part in group.slices:
            slices.setdefault(part.key, []).append((group, part))
    return slices


def _norms(graph: WeightGraph, groups: Sequence[PermutationGroup]) -> dict[str, torch.Tensor]:
    """Return the squared norms (C,) of each group's channels; each tensor is read once."""
    parts: dict[str, list[torch.Tensor]] = {group.name: [] for group in groups}
    for key, slices in slices_by_tensor(groups).items():
        tensor = graph.tensors[key].detach()
        for group, part in slices:
            parts[group.name].append(squared_norms(part.channels(tensor, group.size)))
        del tensor  # before the next one is read
    # The sum is the same for any order of the tensors.
    return {name: torch.stack(found).sort(0).values.sum(0) for name, found in parts.items()}


def _has_ties(group: PermutationGroup, norms: torch.Tensor) -> bool:
    return any(len(block.unique()) < len(block) for block in norms.view(group.blocks, -1))


def _sorted_in_blocks(
    group: PermutationGroup, norms: torch.Tensor, colors: torch.Tensor | None
) -> torch.Tensor:
    """Return the order (C,) of channels by norm, then color, within blocks."""
    blocks = norms.view(group.blocks, -1)
    order = torch.arange(blocks.shape[1]).expand(len(blocks), -1)
    if colors is not None:
        order = colors.view(group.blocks, -1).argsort(dim=1, stable=True)
    order = order.gather(1, blocks.gather(1, order).argsort(dim=1, stable=True))
    return (order + torch.arange(len(blocks))[:, None] * blocks.shape[1]).flatten()
