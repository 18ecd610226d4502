"""Channel permutations that keep a network's function (Git Re-Basin, Ainsworth 2022).

The method: docs/explanation/sane.md, section 10.
`groups` depends only on layers, so a zoo of one architecture computes it once and passes it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sane_plugins.errors import SourceError
from sane_plugins.symmetry.groups import AxisSlice, PermutationGroup
from sane_plugins.symmetry.matching import match
from sane_plugins.symmetry.propagate import follow
from sane_plugins.weights import RUNNING, WeightGraph

Permutations = Mapping[str, torch.Tensor]


def permutation_groups(graph: WeightGraph) -> tuple[PermutationGroup, ...]:
    """Return the permutation groups of a network; none where the source carries no topology."""
    spaces, uses = follow(graph)
    found: dict[int, list[AxisSlice]] = {}
    for (key, axis), layout in uses.items():
        offset = 0
        for space, repeat in spaces.resolve(layout or ()):
            length = spaces.sizes[space] * repeat
            if spaces.is_free(space):
                found.setdefault(space, []).append(AxisSlice(key, axis, offset, length, repeat))
            offset += length
    return tuple(
        PermutationGroup(_name(places[0]), spaces.sizes[space], spaces.blocks[space], tuple(places))
        for space, places in found.items()
    )


def permute(
    graph: WeightGraph, perms: Permutations, groups: Sequence[PermutationGroup] | None = None
) -> WeightGraph:
    """Return the same function with channel i of each named group taken from channel `perms[name][i]`.

    Raises `SourceError` for an unknown group, and for what is no permutation within its blocks.
    """
    known = {group.name: group for group in _known(graph, groups)}
    tensors: dict[str, torch.Tensor] = {}
    for name, perm in perms.items():
        _require_fit(graph, name, perm, known.get(name))
        for place in known[name].places:
            tensor = tensors.get(place.key)
            tensor = graph.tensors[place.key] if tensor is None else tensor
            index = _index(place, perm, tensor.shape[place.axis]).to(tensor.device)
            tensors[place.key] = tensor.detach().index_select(place.axis, index)
    return graph.replace(tensors)


def inverse(perms: Permutations) -> dict[str, torch.Tensor]:
    """Return the permutations that undo these."""
    return {name: perm.argsort() for name, perm in perms.items()}


def random_permutations(
    groups: Sequence[PermutationGroup], rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Draw a permutation for each group, uniform within its blocks."""
    return {group.name: _random(group, rng) for group in groups}


def align(
    graph: WeightGraph,
    reference: WeightGraph,
    rng: torch.Generator,
    groups: Sequence[PermutationGroup] | None = None,
) -> WeightGraph:
    """Return the same function with its channels in the order that fits `reference` best.

    Raises `SourceError` where the two networks differ in shape.
    """
    known = _known(graph, groups)
    return permute(graph, alignment(graph, reference, rng, known), known)


def alignment(
    graph: WeightGraph,
    reference: WeightGraph,
    rng: torch.Generator,
    groups: Sequence[PermutationGroup] | None = None,
) -> Permutations:
    """Return the permutations that `align` applies, for networks that are to be moved in the same way.

    Weight matching, algorithm 1 of Git Re-Basin. Running statistics move along but do not count.
    """
    known = _known(graph, groups)
    _require_alike(graph, reference, {place.key for group in known for place in group.places})
    counted = {p.key for p in graph.params if p.role not in RUNNING}
    return match(known, graph.tensors, reference.tensors, counted, rng)


def _known(
    graph: WeightGraph, given: Sequence[PermutationGroup] | None
) -> Sequence[PermutationGroup]:
    """Return the groups that a caller gave, or else those of the network."""
    return permutation_groups(graph) if given is None else given


def _name(place: AxisSlice) -> str:
    """Name a group by the first tensor it permutes."""
    return (
        place.key
        + (f"[{place.axis}]" if place.axis else "")
        + f"+{place.offset}" * (place.offset > 0)
    )


def _random(group: PermutationGroup, rng: torch.Generator) -> torch.Tensor:
    block = group.size // group.blocks
    draws = torch.rand(group.blocks, block, generator=rng, device=rng.device).argsort(dim=1).cpu()
    return (draws + block * torch.arange(group.blocks)[:, None]).flatten()


def _index(place: AxisSlice, perm: torch.Tensor, size: int) -> torch.Tensor:
    """Return the index (size,) along the place's axis."""
    entries = perm[:, None] * place.repeat + torch.arange(place.repeat)
    index = torch.arange(size)
    index[place.offset : place.offset + place.length] = entries.flatten() + place.offset
    return index


def _require_fit(
    graph: WeightGraph, name: str, perm: torch.Tensor, group: PermutationGroup | None
) -> None:
    if group is None:
        raise SourceError(
            graph.source,
            f"a permutation was given for '{name}'",
            "the network has no such permutation group",
            "use the names that `groups` returns",
        )
    whole = torch.arange(group.size)
    block = group.size // group.blocks
    if not (
        perm.shape == whole.shape
        and torch.equal(perm.sort().values, whole)
        and torch.equal(perm // block, whole // block)
    ):
        raise SourceError(
            f"{graph.source}, '{name}'",
            f"{len(perm)} indices were given",
            f"a permutation of {group.size} channels within {group.blocks} block(s) is needed",
            "draw it with `random_permutations`",
        )


def _require_alike(graph: WeightGraph, reference: WeightGraph, keys: set[str]) -> None:
    """Raise `SourceError` where one of these tensors is missing in the reference or differs in shape."""
    there = {p.key: p.shape for p in reference.params}
    for param in graph.params:
        if param.key in keys and there.get(param.key) != param.shape:
            raise SourceError(
                f"{graph.source}, '{param.key}'",
                f"the shape is {param.shape}",
                f"the reference {reference.source} has {there.get(param.key, 'no such tensor')}",
                "align networks of one architecture",
            )
