"""Zoos in memory as a SANE reads them: aligned, cut, with permutations for views.

The method: docs/explanation/sane.md, sections 4.1, 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from sane_plugins.autoencoder import SANEConfig, TokenLayout, standardized_tokens
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.pretraining.views import PermutedDataset
from sane_plugins.progress import Progress, Report
from sane_plugins.symmetry import (
    PermutationGroup,
    alignment,
    permutation_groups,
    permute,
    random_permutations,
)
from sane_plugins.weights import WeightGraph, fit_scale, slots, tokenize
from sane_plugins.zoo import Entry, Zoo

_MOVES = 512  # permutations of one architecture
_MOST = 2**26  # numbers in all of them: 256 MiB
_EXACT = 2**24  # single precision tells whole numbers apart up to this


def build_banks(
    zoos: Sequence[Zoo],
    config: SANEConfig,
    views: int,
    rng: torch.Generator,
    report: Report,
    *,
    aligned: bool = True,
) -> list[PermutedDataset]:
    """Align every network to the best of its architecture, cut it, and draw permutations for its views.

    All checkpoints of a training run are moved as its last one is. Networks with values that are not finite
    are left out, and that is reported.
    """
    found, dropped = _by_architecture(zoos)
    if config.scale == "zoo" and len(found) > 1:
        raise UsageError(
            "the zoos",
            f"they hold {len(found)} architectures",
            "a zoo-wise scale is that of one",
            "choose networks of one architecture, or the default preset",
        )
    total = sum(map(len, found))
    note = f"{dropped} networks with values that are not finite left out" if dropped else ""
    banks: list[PermutedDataset] = []
    for samples in found:
        banks += _banks(samples, config, views, rng, aligned)
        done = sum(len(bank.values) for bank in banks)
        report(Progress(job="align and cut", done=done, total=total, note=note))
    return banks


@dataclass(frozen=True)
class _Sample:
    """One checkpoint of a zoo."""

    zoo: Zoo
    entry: Entry
    graph: WeightGraph


def _by_architecture(zoos: Sequence[Zoo]) -> tuple[list[list[_Sample]], int]:
    """Return the samples of each architecture, run by run, and how many were left out."""
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], list[_Sample]] = {}
    dropped = 0
    for zoo in zoos:
        for entry in sorted(zoo.entries, key=lambda entry: entry.network):
            graph = zoo.graph(entry)
            if all(tensor.isfinite().all() for _, tensor in graph.items()):
                shapes = tuple((p.key, p.shape) for p in graph.params)
                found.setdefault(shapes, []).append(_Sample(zoo, entry, graph))
            else:
                dropped += 1
    return list(found.values()), dropped


def _banks(
    samples: list[_Sample], config: SANEConfig, views: int, rng: torch.Generator, aligned: bool
) -> Iterator[PermutedDataset]:
    """Yield a bank per zoo of one architecture; they share reference, permutations and places."""
    template, width = samples[0].graph, config.token_width
    spaces = permutation_groups(template)
    graphs = _aligned(samples, spaces, rng) if aligned else (s.graph for s in samples)
    parts = [_tokens(graph, config) for graph in graphs]
    values, side = (torch.stack(part) for part in zip(*parts, strict=True))
    mask = torch.cat([slot.mask(width) for slot in slots(template)])
    layout = TokenLayout.of(slots(template), width)
    zoo_scale = torch.zeros(0, 2)
    if config.scale == "zoo":
        values, zoo_scale = _standardized(values, mask, layout)
    count = min(len(samples) * views, _MOVES, max(views, _MOST // mask.numel()))
    moves = _moves(template, spaces, mask, count, rng)
    places = config.places(layout, 0, len(layout))
    start = 0
    for _, own in groupby(samples, key=lambda sample: id(sample.zoo)):
        kept = list(own)
        rows = slice(start, start + len(kept))
        start = rows.stop
        yield PermutedDataset(
            values[rows],
            moves,
            views,
            mask,
            places,
            side[rows],
            zoo_scale,
            tuple(sample.entry for sample in kept),
            template,
            kept[0].zoo.name,
        )


def _aligned(
    samples: list[_Sample], spaces: Sequence[PermutationGroup], rng: torch.Generator
) -> Iterator[WeightGraph]:
    """Move every checkpoint as the last one of its run is moved to fit the best network of all."""
    reference = max(samples, key=lambda s: float(s.entry.properties.get("test_accuracy", 0.0)))
    for _, run in groupby(samples, key=lambda s: (id(s.zoo), s.entry.network)):
        kept = list(run)
        moved = alignment(kept[-1].graph, reference.graph, rng, spaces)
        yield from (permute(sample.graph, moved, spaces) for sample in kept)


def _tokens(graph: WeightGraph, config: SANEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (T, D) and side (T, 4); values are raw unless each tensor's own scale is divided out."""
    if config.scale == "tensor":
        tokens, side = standardized_tokens(graph, config.token_width)
        return tokens.values, side
    tokens = tokenize(graph, config.token_width)
    return tokens.values.float(), fit_scale(graph).side[tokens.positions[:, 1]]


def _standardized(
    values: torch.Tensor, mask: torch.Tensor, layout: TokenLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (N, T, D) with the scale of each slot over all N networks divided out, and it (M, 2)."""
    found = []
    for start, stop in layout.spans:
        real = values[:, start:stop][:, mask[start:stop]].double()
        found.append(torch.stack([real.mean(), real.std(correction=0).clamp(min=1e-12)]))
    zoo_scale = torch.stack(found).float()
    mean, deviation = zoo_scale[layout.slots(0, len(mask))].unbind(1)
    return (values - mean[:, None]) / deviation[:, None] * mask, zoo_scale


def _moves(
    template: WeightGraph,
    spaces: Sequence[PermutationGroup],
    mask: torch.Tensor,
    count: int,
    rng: torch.Generator,
) -> torch.Tensor:
    """Return where each value of a permuted network comes from (1 + count, T * D); row 0 moves nothing.

    Found by permuting a network whose values are numbered.
    """
    numbered, width, real = _numbered(template), mask.shape[1], mask.flatten()
    place = token_places(template, mask)
    moves = torch.arange(mask.numel(), dtype=torch.int32).repeat(1 + count, 1)
    for row in moves[1:]:
        drawn = permute(numbered, random_permutations(spaces, rng), spaces)
        row[real] = place[_numbers(drawn, width, real)]
    return moves


def token_places(template: WeightGraph, mask: torch.Tensor) -> torch.Tensor:
    """Return where each value of a network, tensor by tensor, lies among its flat tokens, int32."""
    real = mask.flatten()
    place = torch.empty(template.size, dtype=torch.int32)
    place[_numbers(_numbered(template), mask.shape[1], real)] = real.nonzero()[:, 0].int()
    return place


def _numbered(template: WeightGraph) -> WeightGraph:
    """Return a network of these shapes whose values are numbered."""
    if template.size > _EXACT:
        raise ZooError(
            template.source,
            f"it has {template.size:,} values",
            f"views hold up to {_EXACT:,}",
            "pretrain on smaller networks",
        )
    ends = torch.tensor([0, *(p.size for p in template.params)]).cumsum(0).tolist()
    numbers = {
        p.key: torch.arange(end - p.size, end, dtype=torch.float32).view(p.shape)
        for p, end in zip(template.params, ends[1:], strict=True)
    }
    return template.replace(numbers)


def _numbers(graph: WeightGraph, width: int, real: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a numbered network in the order of its tokens."""
    return tokenize(graph, width).values.flatten()[real].long()
