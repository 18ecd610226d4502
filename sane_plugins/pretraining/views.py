"""Training samples: windows cut at random from networks and permuted views of them (spec section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import Entry


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a key of a cache
class PermutedDataset:
    """All samples of one architecture from one zoo: N networks of T tokens, and V permuted views of each.

    values (N, T, D) as they are encoded, of the aligned networks; moves (R, T * D) say for each value of a
    permuted network where the aligned one has it, row 0 nowhere else; mask (T, D); places (T, P);
    side (N, T, 4), which no permutation changes. `scale` (M, 2) is the zoo's, where that was divided out.
    `entries` names the N networks; `template` has their shapes; `zoo` is the zoo's name.
    """

    values: torch.Tensor
    moves: torch.Tensor
    views: int
    mask: torch.Tensor
    places: torch.Tensor
    side: torch.Tensor
    scale: torch.Tensor
    entries: tuple[Entry, ...]
    template: WeightGraph
    zoo: str

    def whole(self, network: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        """Return all tokens (B, T, D) of these networks in these views, both (B,)."""
        return self.cut(network, view, torch.arange(len(self.mask)).expand(len(network), -1))

    def cut(self, network: torch.Tensor, view: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the tokens at (B, S) of these networks in these views, (B, S, D).

        View 0 is the aligned network. Permutations are shared by networks, but the V of one differ.
        """
        others = max(len(self.moves) - 1, 1)
        move = torch.where(view == 0, 0, 1 + (network * self.views + view - 1) % others)
        tokens, width = self.mask.shape
        index = self.moves.view(-1, tokens, width)[move[:, None], at].long()
        return self.values.view(-1)[index + network[:, None, None] * (tokens * width)]


@dataclass(frozen=True)
class ViewBatch:
    """Two views of B windows: clean values (B, S, D) each, side (B, S, 4), places (B, S, P), mask (B, S, D).

    Window i is cut from network `network[i]` of `bank` at token `start[i]`: `first` from its view 0,
    `second` from its view `view[i]`.
    """

    first: torch.Tensor
    second: torch.Tensor
    side: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor
    bank: PermutedDataset
    network: torch.Tensor
    view: torch.Tensor
    start: torch.Tensor

    def __len__(self) -> int:
        return len(self.network)

    def rows(self, rows: torch.Tensor) -> ViewBatch:
        """Return some windows of the batch."""
        parts = {key: value[rows] for key, value in vars(self).items() if key != "bank"}
        return replace(self, **parts)


def draw(bank: PermutedDataset, batch: int, span: int, rng: torch.Generator) -> ViewBatch:
    """Draw windows of `span` consecutive tokens from random networks: the aligned one and a view of it."""
    networks, tokens, _ = bank.values.shape
    which = torch.randint(networks, (batch,), generator=rng)
    view = torch.randint(bank.views + 1, (batch,), generator=rng)
    span = min(span, tokens)
    start = torch.randint(tokens - span + 1, (batch,), generator=rng)
    at = start[:, None] + torch.arange(span)
    return ViewBatch(
        bank.values[which[:, None], at],
        bank.cut(which, view, at),
        bank.side[which[:, None], at],
        bank.places[at],
        bank.mask[at],
        bank,
        which,
        view,
        start,
    )


def noisy(values: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """Multiply by 1 + strength * N(0, 1)."""
    return values * (1 + strength * torch.randn(values.shape, generator=rng))
