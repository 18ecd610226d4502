"""Channel permutations that keep a network's function (Git Re-Basin, Ainsworth 2022).

The method: docs/explanation/sane.md, section 10.

`permutation_groups` depends only on layers, so a zoo of one architecture computes it once and passes it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sane_plugins.errors import SourceError
from sane_plugins.symmetry.permutation_group import AxisSlice, PermutationGroup
from sane_plugins.symmetry.propagate import propagate_channels
from sane_plugins.weights import WeightGraph

Permutations = Mapping[str, torch.Tensor]


def permutation_groups(graph: WeightGraph) -> tuple[PermutationGroup, ...]:
    """Return the permutation groups of a network; empty where the source carries no topology."""
    groups, axes = propagate_channels(graph)
    slices: dict[int, list[AxisSlice]] = {}
    for (key, axis), layout in axes.items():
        offset = 0
        for group, repeat in groups.resolve(layout or ()):
            length = groups.sizes[group] * repeat
            if groups.is_free(group):
                slices.setdefault(group, []).append(AxisSlice(key, axis, offset, length, repeat))
            offset += length
    return tuple(
        PermutationGroup(
            _group_name(group_slices[0]),
            groups.sizes[group],
            groups.blocks[group],
            tuple(group_slices),
        )
        for group, group_slices in slices.items()
    )


def permute(
    graph: WeightGraph, perms: Permutations, groups: Sequence[PermutationGroup] | None = None
) -> WeightGraph:
    """Permute channels, keeping the function: channel i of each named group is taken from `perms[name][i]`.

    Raises `SourceError` for an unknown group, and for anything but a permutation within its blocks.
    """
    by_name = {group.name: group for group in known_groups(graph, groups)}
    tensors: dict[str, torch.Tensor] = {}
    for name, perm in perms.items():
        _require_permutation(graph, name, perm, by_name.get(name))
        for part in by_name[name].slices:
            tensor = tensors.get(part.key)
            tensor = graph.tensors[part.key] if tensor is None else tensor
            index = part.index(perm, tensor.shape[part.axis]).to(tensor.device)
            tensors[part.key] = tensor.detach().index_select(part.axis, index)
    return graph.replace(tensors)


def inverse(perms: Permutations) -> dict[str, torch.Tensor]:
    """Return the inverse permutations."""
    return {name: perm.argsort() for name, perm in perms.items()}


def random_permutations(
    groups: Sequence[PermutationGroup], rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Draw a permutation for each group, uniform within its blocks."""
    return {group.name: _random_permutation(group, rng) for group in groups}


def known_groups(
    graph: WeightGraph, given: Sequence[PermutationGroup] | None
) -> Sequence[PermutationGroup]:
    """Return the given groups, or those of the network where None are given."""
    return permutation_groups(graph) if given is None else given


def _group_name(first: AxisSlice) -> str:
    """Name a group by the first tensor it permutes."""
    axis = f"[{first.axis}]" if first.axis else ""
    return first.key + axis + f"+{first.offset}" * (first.offset > 0)


def _random_permutation(group: PermutationGroup, rng: torch.Generator) -> torch.Tensor:
    block = group.size // group.blocks
    draws = torch.rand(group.blocks, block, generator=rng, device=rng.device, dtype=torch.float32)
    return (draws.argsort(dim=1).cpu() + block * torch.arange(group.blocks)[:, None]).flatten()


def _require_permutation(
    graph: WeightGraph, name: str, perm: torch.Tensor, group: PermutationGroup | None
) -> None:
    if group is None:
        raise SourceError(
            graph.source,
            f"a permutation was given for '{name}'",
            "the network has no such permutation group",
            "use the names that `permutation_groups` returns",
        )
    identity = torch.arange(group.size)
    block = group.size // group.blocks
    if not (
        perm.shape == identity.shape
        and torch.equal(perm.sort().values, identity)
        and torch.equal(perm // block, identity // block)
    ):
        raise SourceError(
            f"{graph.source}, '{name}'",
            f"{len(perm)} indices were given",
            f"a permutation of {group.size} channels within {group.blocks} block(s) is needed",
            "draw it with `random_permutations`",
        )
