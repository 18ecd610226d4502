"""Training samples: aligned networks, permuted views of them, and windows cut at random (spec section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sane_plugins.latent.codec import standardised_tokens
from sane_plugins.latent.places import place_features
from sane_plugins.progress import Progress, Report
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.symmetry import align, groups, permute, random_permutations
from sane_plugins.zoo.store import Entry, Zoo


@dataclass(frozen=True)
class Bank:
    """All samples of one architecture: N networks, V views of T tokens.

    values (N, V, T, D) standardised, view 0 the aligned network and the others channel permutations of
    it; mask (T, D); places (T, P); side (N, T, 4), which no permutation changes. `entries` names the N
    networks; `template` has their shapes.
    """

    values: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor
    side: torch.Tensor
    entries: tuple[Entry, ...]
    template: WeightGraph

    def whole(self, network: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        """Return all tokens (B, T, D) of these networks in these views, both (B,)."""
        return self.values[network, view]


@dataclass(frozen=True)
class Batch:
    """Two views of B windows: clean values (B, S, D) each, side (B, S, 4), places (B, S, P), mask (B, S, D).

    Window i is cut from network `network[i]` of `bank` at token `start[i]`: `first` from its view 0,
    `second` from its view `view[i]`.
    """

    first: torch.Tensor
    second: torch.Tensor
    side: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor
    bank: Bank
    network: torch.Tensor
    view: torch.Tensor
    start: torch.Tensor


def build_banks(
    zoos: Sequence[Zoo], width: int, views: int, rng: torch.Generator, report: Report,
    *, aligned: bool = True,
) -> list[Bank]:  # fmt: skip
    """Align every network to the first of its shapes and precompute its permuted views.

    Networks with values that are not finite are left out, and that is reported.
    """
    by_shape: dict[tuple[tuple[int, ...], ...], list[tuple[Entry, WeightGraph]]] = {}
    dropped = 0
    for zoo in zoos:
        for entry in zoo.entries:
            graph = zoo.graph(entry)
            if all(tensor.isfinite().all() for _, tensor in graph.items()):
                by_shape.setdefault(tuple(p.shape for p in graph.params), []).append((entry, graph))
            else:
                dropped += 1
    total = sum(map(len, by_shape.values()))
    note = f"{dropped} networks with values that are not finite left out" if dropped else ""
    banks = []
    for found in by_shape.values():
        banks.append(_bank(found, width, views, rng, aligned))
        done = sum(len(bank.values) for bank in banks)
        report(Progress(job="align and cut", done=done, total=total, note=note))
    return banks


def draw(bank: Bank, batch: int, span: int, rng: torch.Generator) -> Batch:
    """Draw windows of `span` consecutive tokens from random networks: the aligned one and a view of it."""
    networks, views, tokens, _ = bank.values.shape
    which = torch.randint(networks, (batch,), generator=rng)
    view = torch.randint(views, (batch,), generator=rng)
    span = min(span, tokens)
    start = torch.randint(tokens - span + 1, (batch,), generator=rng)
    at = start[:, None] + torch.arange(span)
    rows = which[:, None]
    return Batch(
        bank.values[rows, 0, at], bank.values[rows, view[:, None], at],
        bank.side[rows, at], bank.places[at], bank.mask[at], bank, which, view, start,
    )  # fmt: skip


def noisy(values: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """Multiply by 1 + strength * N(0, 1)."""
    return values * (1 + strength * torch.randn(values.shape, generator=rng))


def _bank(
    found: list[tuple[Entry, WeightGraph]], width: int, views: int, rng: torch.Generator, aligned: bool
) -> Bank:
    entries, graphs = zip(*found, strict=True)
    spaces = groups(graphs[0])
    values, sides = [], []
    for i, network in enumerate(graphs):
        graph = align(network, graphs[0], rng, spaces) if aligned and i else network
        several = [graph]
        several += [permute(graph, random_permutations(spaces, rng)) for _ in range(views)]
        cut = [standardised_tokens(view, width) for view in several]
        values.append(torch.stack([tokens.values for tokens, _ in cut]))
        sides.append(cut[0][1])
    tokens = cut[0][0]
    places = place_features(tokens.positions, tokens.mask)
    return Bank(torch.stack(values), tokens.mask, places, torch.stack(sides), entries, graphs[0])
