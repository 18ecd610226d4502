"""Attention and MLP branches of other sizes: heads, head widths and hidden channels chosen or added.

What is added computes nothing at first: it is read with weight zero, and reads with the target's own
draws.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadWeights:
    """Weights of attention by head: `queries`, `keys`, `values` (H, C, D + 1), the last column being biases.

    `output` is (D, H, C), `bias` (D,). `factor` multiplies the products of queries and keys.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    output: torch.Tensor
    bias: torch.Tensor
    factor: float


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenWeights:
    """Weights of an MLP by hidden channel: `reading` (F, S, D + 1), the last column being biases.

    S is 1, or 2 where a hidden channel is a product of two. `output` is (D, F), `bias` (D,).
    """

    reading: torch.Tensor
    output: torch.Tensor
    bias: torch.Tensor


def fit_hidden(source: HiddenWeights, fresh: HiddenWeights) -> HiddenWeights:
    """Return an MLP of the target's hidden width: the source's strongest channels, or all and new ones."""
    kept = min(len(source.reading), len(fresh.reading))
    strengths = source.reading.flatten(1).norm(dim=1) * source.output.norm(dim=0)
    chosen = strengths.topk(kept).indices.sort().values
    reading, output = fresh.reading.clone(), torch.zeros_like(fresh.output)
    reading[:kept] = source.reading[chosen]
    output[:, :kept] = source.output[:, chosen]
    return HiddenWeights(reading=reading, output=output, bias=source.bias)


def fit_heads(source: HeadWeights, fresh: HeadWeights, *, may_mix: bool) -> HeadWeights:
    """Return attention with the target's heads.

    Fewer heads: those of the largest output. More: all in turn; repeated ones have the attention of
    their model, and output zero, or that part of its output which did not fit. Narrower heads keep the
    strongest directions of the products of queries with keys and of outputs with values, where `may_mix`
    says that channels within a head are free.
    """
    heads, width = fresh.queries.shape[:2]
    source = _with_factor(source, fresh.factor)
    order = _head_order(source, heads)
    copies = torch.stack([(order[:i] == h).sum() for i, h in enumerate(order.tolist())])
    result = replace(
        fresh,
        queries=fresh.queries.clone(),
        keys=torch.zeros_like(fresh.keys),
        values=fresh.values.clone(),
        output=torch.zeros_like(fresh.output),
        bias=source.bias,
    )
    mixes = may_mix and source.queries.shape[1] > width
    for place, (head, copy) in enumerate(zip(order.tolist(), copies.tolist(), strict=True)):
        queries, keys = source.queries[head], source.keys[head]
        values, output = source.values[head], source.output[:, head]
        if mixes:
            keys_as_columns, queries = _balanced(keys.T, queries)
            keys = keys_as_columns.T
            output, values = _balanced(output, values)
        fitting = min(len(queries), width)
        result.queries[place, :fitting] = queries[:fitting]
        result.keys[place, :fitting] = keys[:fitting]
        part = slice(copy * width, (copy + 1) * width)
        fitting = len(values[part])
        result.values[place, :fitting] = values[part]
        result.output[:, place, :fitting] = output[:, part]
    return result


def _with_factor(source: HeadWeights, factor: float) -> HeadWeights:
    if source.factor == factor:
        return source
    share = sqrt(source.factor / factor)
    return replace(source, queries=source.queries * share, keys=source.keys * share, factor=factor)


def _head_order(source: HeadWeights, heads: int) -> torch.Tensor:
    """Return a head of the source for each of the target: the strongest in their order, or all in turn."""
    count = len(source.queries)
    if heads >= count:
        return torch.arange(heads) % count
    grams = torch.einsum("dhc,dhe->hce", source.output, source.output)
    strengths = torch.einsum("hce,hcd,hed->h", grams, source.values, source.values)
    return strengths.topk(heads).indices.sort().values


def _balanced(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two matrices (n, C) and (C, m) of the same product, its strongest directions first."""
    left_basis, left_core = torch.linalg.qr(left.double())
    right_basis, right_core = torch.linalg.qr(right.double().T)
    turn, values, back = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root = values.sqrt()
    first = left_basis @ (turn * root)
    second = (root[:, None] * back) @ right_basis.T
    return first.to(left), second.to(right)
