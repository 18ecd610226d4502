"""The behaviour term: a decoded network must answer as the original does (spec section 8).

Structure alone gives small weight errors and poor accuracy (Meynent et al., "Structure is not enough", 2025).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from sane_plugins.architectures import build
from sane_plugins.pretraining.permuted_dataset import token_places
from sane_plugins.pretraining.views import PermutedDataset, ViewBatch
from sane_plugins.weights import RUNNING, Scale

_LEAST = 1e-6  # of the variance that errors are compared with; a network may answer all alike


class Outputs:
    """The difference between a network's outputs with a decoded window and without, on `count` images.

    `images` (M, C, H, W) by the name of the zoo; zoos without images and entries that cannot be built add
    nothing.
    """

    def __init__(self, images: Mapping[str, torch.Tensor], count: int = 32) -> None:
        self._images, self._count = images, count
        self._whole: dict[int, _Whole] = {}

    def __call__(
        self, batch: ViewBatch, values: torch.Tensor, side: torch.Tensor, rng: torch.Generator
    ) -> torch.Tensor:
        """Return the mean of log(1 + squared error / variance of the original's outputs), a scalar.

        values (2B, S, D) and side (2B, S, 4) are what was decoded; only the first views are run.
        """
        images = self._images.get(batch.bank.zoo)
        if images is None:
            return values.sum() * 0
        drawn = torch.randint(len(images), (self._count,), generator=rng)
        seen = images[drawn].to(values.device)
        whole = self._whole.setdefault(id(batch.bank), _Whole(batch.bank))
        decoded, original = whole.decoded(batch, values[: len(batch)], side[: len(batch)])
        losses = []
        for module, rows in _runnable(batch):
            with torch.no_grad():
                wanted = _run(module, {key: x[rows] for key, x in original.items()}, seen)
            found = _run(module, {key: x[rows] for key, x in decoded.items()}, seen)
            error = ((found - wanted) ** 2).flatten(1).mean(1)
            losses.append(torch.log1p(error / wanted.flatten(1).var(1).clamp(min=_LEAST)))
        return torch.cat(losses).sum() / len(batch) if losses else values.sum() * 0


class _Whole:
    """How the tokens of a bank's networks become their tensors, all networks at once."""

    def __init__(self, bank: PermutedDataset) -> None:
        self._bank = bank
        layout = bank.template.token_layout(bank.mask.shape[1])
        self._slot = layout.slot_numbers()
        self._first = layout.first
        places = token_places(layout)
        self._tensors = {key: (x.long().flatten(), x.shape) for key, x in places.items()}
        # Running statistics are measured anew on images after decoding; a decoded variance may be negative.
        self._measured = [p.key for p in bank.template.params if p.role in RUNNING]
        self._scales: dict[str, tuple[int, int]] = {}
        for i, slot in enumerate(layout.slots):
            self._scales |= {param.key: (i, j) for j, param in enumerate(slot.params)}

    def decoded(
        self, batch: ViewBatch, values: torch.Tensor, side: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the networks with the decoded windows in place, and as they were, (B, *shape) by key."""
        own = self._bank.whole(batch.network, torch.zeros_like(batch.network)).to(values)
        scale = self._bank.side[batch.network][:, self._first].to(side)
        at = (batch.start[:, None] + torch.arange(values.shape[1])).to(values.device)
        changed = own.scatter(1, at[..., None].expand_as(values), values)
        original = self._network(own, scale)
        decoded = self._network(changed, self._decoded_side(scale, side, at))
        return decoded | {key: original[key] for key in self._measured}, original

    def _decoded_side(
        self, own: torch.Tensor, side: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Return the side (B, M, 4) of all slots: where tokens were decoded, their mean."""
        slot = self._slot.to(at.device)[at]
        sums = torch.zeros_like(own).scatter_add(1, slot[..., None].expand_as(side), side)
        count = own.new_zeros(own.shape[:2]).scatter_add(1, slot, side.new_ones(slot.shape))
        return torch.where(count[..., None] > 0, sums / count[..., None].clamp(min=1), own)

    def _network(self, tokens: torch.Tensor, side: torch.Tensor) -> dict[str, torch.Tensor]:
        scale, flat, found = Scale.from_side(side.flatten(0, 1)), tokens.flatten(1), {}
        for key, (at, shape) in self._tensors.items():
            slot, part = self._scales[key]
            mean, deviation = (
                x.view(len(side), -1, 2)[:, slot, part, None] for x in (scale.mean, scale.deviation)
            )
            found[key] = (flat[:, at.to(flat.device)] * deviation + mean).view(-1, *shape)
        return found


def _runnable(batch: ViewBatch) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    """Yield each network that the batch's entries are built as, and the rows that are."""
    rows: dict[str, list[int]] = {}
    for row, network in enumerate(batch.network.tolist()):
        if factory := batch.bank.entries[network].factory:
            rows.setdefault(json.dumps(dict(factory)), []).append(row)
    for factory, own in rows.items():
        yield _built(factory), torch.tensor(own)


@lru_cache(maxsize=64)
def _built(factory: str) -> nn.Module:
    return build(json.loads(factory)).eval().requires_grad_(False)


def _run(module: nn.Module, tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return the outputs (B, images, ...) of B networks."""
    device = images.device

    def one(own: dict[str, torch.Tensor]) -> Any:
        return functional_call(module.to(device), own, (images,))

    answers: torch.Tensor = vmap(one)(tensors)
    return answers
