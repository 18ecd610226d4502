"""Mimetic initialisation: attention that starts as trained attention looks, without any prompt.

Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023, sections 3 and 4.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch
from torch import nn

from sane_plugins.grafting.transformers.branch_weights import BranchWeights
from sane_plugins.grafting.transformers.grids import sine_cosine
from sane_plugins.grafting.transformers.head_maps import HeadWeights
from sane_plugins.grafting.transformers.structure_reader import read_streams
from sane_plugins.grafting.transformers.tracing import execute

# Of queries with keys: noise and identity. Of outputs with values: noise, and minus the identity.
_ATTENTION_NOISE, _ATTENTION_IDENTITY = 0.7, 0.7
_VALUE_NOISE, _VALUE_IDENTITY = 0.4, 0.4


@torch.no_grad()
def write_mimetic(module: nn.Module, images: torch.Tensor, rng: torch.Generator) -> frozenset[str]:
    """Write mimetic attention, and sine-cosine positions into tables; return the parameters written.

    The images (N, C, H, W) are run to find attention, of any network that has some between residual sums.
    Biases of queries, keys, values and outputs become zero.
    """
    changed: set[str] = set()
    parameters = dict(module.named_parameters())
    for network in read_streams(execute(module, images)):
        weights = BranchWeights(module, network)
        for branch in network.branches:
            fresh = weights.heads(branch)
            if fresh is not None:
                weights.set_heads(branch, _mimetic_heads(fresh, rng))
        if weights.changed:
            _write_positions(weights)
        for key in weights.changed:
            parameters[key].copy_(weights.values[key])
        changed |= weights.changed
    return frozenset(changed)


def _write_positions(weights: BranchWeights) -> None:
    network = weights.network
    for table in network.tables:
        if table.grid is not None and (table.cells >= 0).any():
            like = weights.values[table.key]
            rows = network.rows_of(like, table.key, table.axis).clone()
            cells = sine_cosine(table.grid, network.width).flatten(0, 1)
            is_cell = table.cells >= 0
            rows[is_cell] = cells[table.cells[is_cell]]
            weights.set_all(table.key, network.from_rows(rows, like, table.key, table.axis))


def _mimetic_heads(fresh: HeadWeights, rng: torch.Generator) -> HeadWeights:
    heads, channels, width = fresh.queries.shape
    width -= 1  # without the bias
    queries, keys = torch.zeros_like(fresh.queries), torch.zeros_like(fresh.keys)
    for head in range(heads):
        product = _noise(width, rng) * _ATTENTION_NOISE + _ATTENTION_IDENTITY * torch.eye(width)
        left, right = _strongest(product, channels)
        queries[head, : len(right), :-1], keys[head, : len(right), :-1] = left.T, right
    product = _noise(width, rng) * _VALUE_NOISE - _VALUE_IDENTITY * torch.eye(width)
    left, right = _strongest(product, heads * channels)
    flat_values = torch.zeros(heads * channels, width + 1)
    flat_output = torch.zeros(width, heads * channels)
    flat_values[: len(right), :-1], flat_output[:, : len(right)] = right, left
    return replace(
        fresh,
        queries=queries,
        keys=keys,
        values=flat_values.view(heads, channels, -1),
        output=flat_output.view(width, heads, channels),
        bias=torch.zeros_like(fresh.bias),
    )


def _strongest(product: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices (D, k) and (k, D), scaled alike, whose product is nearest; k is at most `count`."""
    left, values, right = torch.linalg.svd(product)
    root = values[:count].sqrt()
    return left[:, :count] * root, root[:, None] * right[:count]


def _noise(width: int, rng: torch.Generator) -> torch.Tensor:
    """Return numbers (width, width) of variance 1 / width."""
    return torch.randn(width, width, generator=rng) / sqrt(width)
