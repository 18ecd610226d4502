"""Zoos in memory as a SANE reads them: aligned, cut, with permutations for views (spec section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from sane_plugins.autoencoder import SANEConfig, standardized_tokens
from sane_plugins.errors import UsageError
from sane_plugins.pretraining.views import PermutedDataset
from sane_plugins.progress import Progress, Report
from sane_plugins.symmetry import (
    PermutationGroup,
    alignment,
    permutation_groups,
    permute,
    random_permutations,
)
from sane_plugins.weights import TokenLayout, WeightGraph, fit_scale, token_tensors, token_values
from sane_plugins.zoo import Entry, Zoo

_MOVES = 512  # permutations of one architecture
_MOST = 2**26  # numbers in all of them: 256 MiB


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
    template = samples[0].graph
    spaces = permutation_groups(template)
    graphs = _aligned(samples, spaces, rng) if aligned else (s.graph for s in samples)
    parts = [_tokens(graph, config) for graph in graphs]
    values, side = (torch.stack(part) for part in zip(*parts, strict=True))
    layout = template.token_layout(config.token_width)
    mask = layout.mask()
    zoo_scale = torch.zeros(0, 2)
    if config.scale == "zoo":
        values, zoo_scale = _standardized(values, mask, layout)
    count = min(len(samples) * views, _MOVES, max(views, _MOST // mask.numel()))
    moves = _moves(template, spaces, layout, count, rng)
    places = config.positions(layout, 0, len(layout))
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
    slot = graph.token_layout(config.token_width).positions()[:, 1]
    return token_values(graph, config.token_width, torch.float32), fit_scale(graph).side[slot]


def _standardized(
    values: torch.Tensor, mask: torch.Tensor, layout: TokenLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (N, T, D) with the scale of each slot over all N networks divided out, and it (M, 2)."""
    found = []
    for start, stop in layout.spans:
        real = values[:, start:stop][:, mask[start:stop]].double()
        found.append(torch.stack([real.mean(), real.std(correction=0).clamp(min=1e-12)]))
    zoo_scale = torch.stack(found).float()
    mean, deviation = zoo_scale[layout.slot_numbers()].unbind(1)
    return (values - mean[:, None]) / deviation[:, None] * mask, zoo_scale


def _moves(
    template: WeightGraph,
    spaces: Sequence[PermutationGroup],
    layout: TokenLayout,
    count: int,
    rng: torch.Generator,
) -> torch.Tensor:
    """Return where each value of a permuted network comes from (1 + count, T * D); row 0 moves nothing.

    Found by permuting a network whose values are their own places among the flat tokens.
    """
    numbered, real = template.replace(token_places(layout)), layout.mask().flatten()
    moves = torch.arange(real.numel(), dtype=torch.int32).repeat(1 + count, 1)
    for row in moves[1:]:
        drawn = permute(numbered, random_permutations(spaces, rng), spaces)
        row[real] = token_values(drawn, layout.width, torch.int32).flatten()[real]
    return moves


def token_places(layout: TokenLayout) -> dict[str, torch.Tensor]:
    """Return for each tensor, by key, where its values lie among the flat tokens, int32 of its shape."""
    places = torch.arange(len(layout) * layout.width, dtype=torch.int32)
    return token_tensors(places.view(-1, layout.width), layout, torch.int32)
