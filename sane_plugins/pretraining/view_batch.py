"""Training batches: two views of windows sampled from permuted networks.

The method: docs/explanation/sane.md, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.pretraining.permuted_dataset import PermutedDataset


@dataclass(frozen=True, eq=False, repr=False)
class ViewBatch(ShortRepr):
    """Two views of B windows: clean values (B, S, D), side (B, S, 4), positions (B, S, P), mask (B, S, D).

    Window i is cut from network `network[i]` of `dataset` at token `start[i]`: `first` from its view 0,
    `second` from its view `view[i]`.
    """

    first: torch.Tensor
    second: torch.Tensor
    side: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    dataset: PermutedDataset
    network: torch.Tensor
    view: torch.Tensor
    start: torch.Tensor

    def __len__(self) -> int:
        return len(self.network)

    def rows(self, rows: torch.Tensor) -> ViewBatch:
        """Select windows of the batch by index."""
        parts = {key: value[rows] for key, value in vars(self).items() if key != "dataset"}
        return replace(self, **parts)


def draw_windows(
    dataset: PermutedDataset, batch: int, span: int, rng: torch.Generator
) -> ViewBatch:
    """Sample windows of `span` consecutive tokens, each from an aligned network and one of its views."""
    networks, tokens, _ = dataset.values.shape
    network = torch.randint(networks, (batch,), generator=rng)
    view = torch.randint(dataset.views + 1, (batch,), generator=rng)
    span = min(span, tokens)
    start = torch.randint(tokens - span + 1, (batch,), generator=rng)
    indices = (start[:, None] + torch.arange(span)).to(dataset.values.device)
    members = network[:, None].to(dataset.values.device)
    return ViewBatch(
        dataset.values[members, indices],
        dataset.tokens_at(network, view, indices),
        dataset.side[members, indices],
        dataset.positions[indices],
        dataset.mask[indices],
        dataset,
        network,
        view,
        start,
    )


def add_noise(values: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """Return values multiplied by 1 + strength * N(0, 1).

    Millions of numbers a step: on a GPU they are its own, from a seed that is the CPU's.
    """
    if values.device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=rng))
        rng = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randn(values.shape, generator=rng, device=values.device)
    return values * (1 + strength * noise)


def draw_hidden(windows: int, span: int, share: float, rng: torch.Generator) -> torch.Tensor:
    """Return which tokens (K, S) of windows the encoder is not shown; of half of the windows none.

    Of a quarter single tokens are hidden, of another quarter a run of neighbours: twice `share` of a window
    at most, half of that in the mean.
    """
    kind, most = (torch.rand(windows, 1, generator=rng) for _ in range(2))
    scattered = torch.rand(windows, span, generator=rng) < 2 * share * most
    length = (2 * share * most * span).ceil()
    begin = (torch.rand(windows, 1, generator=rng) * (span - length + 1)).floor()
    at = torch.arange(span)
    run = (at >= begin) & (at < begin + length)
    return torch.where(kind < 0.5, scattered & (kind < 0.25), run & (kind < 0.75))
