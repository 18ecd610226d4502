"""Behaviour loss: the outputs of a decoded network should match those of the original.

The method: docs/explanation/sane.md, section 8.1.
A loss on weights alone gives small weight errors but poor accuracy
(Meynent et al., "Structure is not enough", 2025).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from sane_plugins.architectures import Trust, build
from sane_plugins.pretraining.permuted_dataset import PermutedDataset, token_indices
from sane_plugins.pretraining.view_batch import ViewBatch
from sane_plugins.weights import RUNNING, Scale

_MIN_VARIANCE = 1e-6  # of outputs: a network's outputs may be constant


class BehaviorLoss:
    """Difference between a network's outputs with and without a decoded window, on `count` images.

    `images` maps zoo names to (M, C, H, W); zoos without images and entries without a factory contribute
    zero.
    """

    def __init__(self, images: Mapping[str, torch.Tensor], count: int = 32) -> None:
        self._images, self._count = images, count
        self._decoders: dict[PermutedDataset, _NetworkDecoder] = {}
        self._modules: dict[str, nn.Module] = {}

    def __call__(
        self, batch: ViewBatch, values: torch.Tensor, side: torch.Tensor, rng: torch.Generator
    ) -> torch.Tensor:
        """Return the mean of log(1 + squared error / variance of the original's outputs), a scalar.

        values (2B, S, D) and side (2B, S, 4) are the decoder's outputs; only the first views are run.
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
            module = self._module(factory, batch.dataset.trust).to(values.device)
            with torch.no_grad():
                expected = _outputs(module, {key: x[rows] for key, x in original.items()}, sampled)
            outputs = _outputs(module, {key: x[rows] for key, x in decoded.items()}, sampled)
            error = ((outputs - expected) ** 2).flatten(1).mean(1)
            losses.append(torch.log1p(error / expected.flatten(1).var(1).clamp(min=_MIN_VARIANCE)))
        return torch.cat(losses).sum() / len(batch) if losses else values.sum() * 0

    def _module(self, factory: str, trust: Trust) -> nn.Module:
        if factory not in self._modules:
            module = build(json.loads(factory), trust)
            self._modules[factory] = module.eval().requires_grad_(False)
        return self._modules[factory]


class _NetworkDecoder:
    """Converts batches of a dataset's token sequences to weight tensors."""

    def __init__(self, dataset: PermutedDataset) -> None:
        self._dataset = dataset
        layout = dataset.template.token_layout(dataset.mask.shape[1])
        self._slot = layout.slot_numbers()
        self._first_tokens = layout.first
        indices = token_indices(layout)
        self._tensors = {key: (x.long().flatten(), x.shape) for key, x in indices.items()}
        # Running statistics are re-estimated on images after decoding; a decoded variance may be negative.
        self._running_statistics = [p.key for p in dataset.template.params if p.role in RUNNING]
        self._scale_index: dict[str, tuple[int, int]] = {}
        for i, slot in enumerate(layout.slots):
            self._scale_index |= {param.key: (i, j) for j, param in enumerate(slot.params)}

    def decode(
        self, batch: ViewBatch, values: torch.Tensor, side: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the tensors with decoded windows inserted, and the original ones, (B, *shape) by key."""
        tokens = self._dataset.all_tokens(batch.network, torch.zeros_like(batch.network)).to(values)
        scale = self._dataset.side[batch.network][:, self._first_tokens].to(side)
        indices = (batch.start[:, None] + torch.arange(values.shape[1])).to(values.device)
        changed = tokens.scatter(1, indices[..., None].expand_as(values), values)
        original = self._build_tensors(tokens, scale)
        decoded = self._build_tensors(changed, self._decoded_side(scale, side, indices))
        return decoded | {key: original[key] for key in self._running_statistics}, original

    def _decoded_side(
        self, original: torch.Tensor, side: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:
        """Return the side information (B, M, 4) of all slots: the mean over decoded tokens where any."""
        slot = self._slot.to(indices.device)[indices]
        sums = torch.zeros_like(original).scatter_add(1, slot[..., None].expand_as(side), side)
        count = original.new_zeros(original.shape[:2]).scatter_add(
            1, slot, side.new_ones(slot.shape)
        )
        return torch.where(count[..., None] > 0, sums / count[..., None].clamp(min=1), original)

    def _build_tensors(self, tokens: torch.Tensor, side: torch.Tensor) -> dict[str, torch.Tensor]:
        scale, flat, tensors = Scale.from_side(side.flatten(0, 1)), tokens.flatten(1), {}
        for key, (indices, shape) in self._tensors.items():
            slot, part = self._scale_index[key]
            mean, deviation = (
                x.view(len(side), -1, 2)[:, slot, part, None] for x in (scale.mean, scale.deviation)
            )
            tensors[key] = (flat[:, indices.to(flat.device)] * deviation + mean).view(-1, *shape)
        return tensors


def _rows_by_factory(batch: ViewBatch) -> dict[str, torch.Tensor]:
    """Group the rows of a batch by factory (JSON); entries without a factory are left out."""
    rows: dict[str, list[int]] = {}
    for row, network in enumerate(batch.network.tolist()):
        if factory := batch.dataset.entries[network].factory:
            rows.setdefault(json.dumps(dict(factory)), []).append(row)
    return {factory: torch.tensor(members) for factory, members in rows.items()}


def _outputs(
    module: nn.Module, tensors: dict[str, torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Return the outputs (B, images, ...) of B networks."""

    def run_one(parameters: dict[str, torch.Tensor]) -> Any:
        return functional_call(module, parameters, (images,))

    outputs: torch.Tensor = vmap(run_one)(tensors)
    return outputs
