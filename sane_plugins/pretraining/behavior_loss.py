"""Behaviour loss: a decoded network must have the outputs of the original.

The method: docs/explanation/sane.md, section 8.1.
Structure alone gives small weight errors and poor accuracy (Meynent et al., "Structure is not enough", 2025).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from sane_plugins.architectures import build
from sane_plugins.pretraining.permuted_dataset import PermutedDataset, token_indices
from sane_plugins.pretraining.view_batch import ViewBatch
from sane_plugins.weights import RUNNING, Scale

_MIN_VARIANCE = 1e-6  # of outputs: a network may have the same ones for all images


class BehaviorLoss:
    """Difference between a network's outputs with a decoded window and without, on `count` images.

    `images` (M, C, H, W) by the name of the zoo; zoos without images and entries that cannot be built add
    nothing.
    """

    def __init__(self, images: Mapping[str, torch.Tensor], count: int = 32) -> None:
        self._images, self._count = images, count
        self._decoders: dict[PermutedDataset, _NetworkDecoder] = {}
        self._modules: dict[str, nn.Module] = {}

    def __call__(
        self, batch: ViewBatch, values: torch.Tensor, side: torch.Tensor, rng: torch.Generator
    ) -> torch.Tensor:
        """Return the mean of log(1 + squared error / variance of the original's outputs), a scalar.

        values (2B, S, D) and side (2B, S, 4) are what was decoded; only the first views are run.
        """
        images = self._images.get(batch.dataset.zoo)
        if images is None:
            return values.sum() * 0
        chosen = torch.randint(len(images), (self._count,), generator=rng)
        sampled = images[chosen].to(values.device)
        if batch.dataset not in self._decoders:
            self._decoders[batch.dataset] = _NetworkDecoder(batch.dataset)
        decoder = self._decoders[batch.dataset]
        decoded, original = decoder.decode(batch, values[: len(batch)], side[: len(batch)])
        losses = []
        for factory, rows in _rows_by_factory(batch).items():
            module = self._module(factory).to(values.device)
            with torch.no_grad():
                expected = _outputs(module, {key: x[rows] for key, x in original.items()}, sampled)
            outputs = _outputs(module, {key: x[rows] for key, x in decoded.items()}, sampled)
            error = ((outputs - expected) ** 2).flatten(1).mean(1)
            losses.append(torch.log1p(error / expected.flatten(1).var(1).clamp(min=_MIN_VARIANCE)))
        return torch.cat(losses).sum() / len(batch) if losses else values.sum() * 0

    def _module(self, factory: str) -> nn.Module:
        if factory not in self._modules:
            self._modules[factory] = build(json.loads(factory)).eval().requires_grad_(False)
        return self._modules[factory]


class _NetworkDecoder:
    """From the tokens of a dataset's networks to their tensors, a batch of networks at once."""

    def __init__(self, dataset: PermutedDataset) -> None:
        self._dataset = dataset
        layout = dataset.template.token_layout(dataset.mask.shape[1])
        self._slot = layout.slot_numbers()
        self._first = layout.first
        indices = token_indices(layout)
        self._tensors = {key: (x.long().flatten(), x.shape) for key, x in indices.items()}
        # Running statistics are measured anew on images after decoding; a decoded variance may be negative.
        self._measured = [p.key for p in dataset.template.params if p.role in RUNNING]
        self._scales: dict[str, tuple[int, int]] = {}
        for i, slot in enumerate(layout.slots):
            self._scales |= {param.key: (i, j) for j, param in enumerate(slot.params)}

    def decode(
        self, batch: ViewBatch, values: torch.Tensor, side: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the networks with the decoded windows in place, and as they were, (B, *shape) by key."""
        own = self._dataset.all_tokens(batch.network, torch.zeros_like(batch.network)).to(values)
        scale = self._dataset.side[batch.network][:, self._first].to(side)
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
        scale, flat, tensors = Scale.from_side(side.flatten(0, 1)), tokens.flatten(1), {}
        for key, (at, shape) in self._tensors.items():
            slot, part = self._scales[key]
            mean, deviation = (
                x.view(len(side), -1, 2)[:, slot, part, None] for x in (scale.mean, scale.deviation)
            )
            tensors[key] = (flat[:, at.to(flat.device)] * deviation + mean).view(-1, *shape)
        return tensors


def _rows_by_factory(batch: ViewBatch) -> dict[str, torch.Tensor]:
    """Return the rows of the batch that each factory (JSON) builds; entries without one have no rows."""
    rows: dict[str, list[int]] = {}
    for row, network in enumerate(batch.network.tolist()):
        if factory := batch.dataset.entries[network].factory:
            rows.setdefault(json.dumps(dict(factory)), []).append(row)
    return {factory: torch.tensor(own) for factory, own in rows.items()}


def _outputs(
    module: nn.Module, tensors: dict[str, torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Return the outputs (B, images, ...) of B networks."""

    def run_one(own: dict[str, torch.Tensor]) -> Any:
        return functional_call(module, own, (images,))

    outputs: torch.Tensor = vmap(run_one)(tensors)
    return outputs
