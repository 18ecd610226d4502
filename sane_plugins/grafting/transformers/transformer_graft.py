"""Graft a trained transformer into another: stream, branches, position tables, patches.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from sane_plugins.grafting.transformers.branch_graft import BranchGraft, BranchPair, match_branches
from sane_plugins.grafting.transformers.branch_weights import BranchWeights
from sane_plugins.grafting.transformers.embedding_graft import PixelChange, graft_embeddings
from sane_plugins.grafting.transformers.stream_maps import (
    StreamMap,
    chosen,
    principal,
    repeated,
    same_stream,
    token_covariance,
    widened,
)
from sane_plugins.grafting.transformers.structure import TokenNetwork
from sane_plugins.grafting.transformers.structure_reader import read_structure
from sane_plugins.grafting.transformers.tracing import execute, has_attention

_FLOPS, _LEAST_IMAGES = 2**40, 16  # of runs that show which directions of a stream matter


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformerGraft:
    """What was done: the parameters that got values, how alike the networks are (1: the same), and notes.

    `source` and `target` are the networks' parts, `stream` the map between their streams, and `pairs` holds
    what each branch of the target was given.
    """

    changed: frozenset[str]
    similarity: float
    notes: tuple[str, ...]
    source: TokenNetwork
    target: TokenNetwork
    stream: StreamMap
    pairs: tuple[BranchPair | None, ...]


def read_transformer(module: nn.Module, images: torch.Tensor) -> TokenNetwork | None:
    """Return the parts of a transformer with one residual stream, by a run on images; None for others."""
    return read_structure(execute(module, images)) if has_attention(module, images) else None


@torch.no_grad()
def graft_attention(
    target: nn.Module,
    source: nn.Module,
    target_images: torch.Tensor,
    source_images: torch.Tensor,
    pixels: PixelChange | None = None,
) -> TransformerGraft | None:
    """Write a source transformer's weights into a target in place; None, and nothing, for others.

    The images (N, C, H, W) are the same ones, each as the network takes them; the source's show which
    directions of its stream matter, where the target's is narrower. `pixels` says how the source's were
    made of the target's, where only scale and shift differ. The classifier is left.
    """
    to = read_transformer(target, target_images)
    of = None if to is None else read_transformer(source, source_images)
    if to is None or of is None:
        return None
    stream = _stream_map(source, of, to, source_images)
    weights, trained = BranchWeights(target, to), BranchWeights(source, of)
    _copy_places(weights, trained)
    graft = BranchGraft(weights, trained, stream)
    pairs = match_branches(of.branches, to.branches)
    for branch, pair in zip(to.branches, pairs, strict=True):
        if pair is not None:
            graft.branch(branch, of.branches[pair.source], pair.share)
    graft_embeddings(weights, trained, stream, pixels)
    graft.tail()
    parameters = dict(target.named_parameters())
    for key in weights.changed:
        parameters[key].copy_(weights.values[key])
    return TransformerGraft(
        changed=frozenset(weights.changed),
        similarity=_similarity(of, to),
        notes=tuple(graft.notes),
        source=of,
        target=to,
        stream=stream,
        pairs=pairs,
    )


def _copy_places(target: BranchWeights, source: BranchWeights) -> None:
    """Copy all parameters where both networks have the same shapes, in order, but for their classifiers."""
    ours, theirs = list(target.values), list(source.values)
    heads = {p.step.key for p in target.network.tail} | {p.bias for p in target.network.tail}
    if len(ours) != len(theirs) or any(
        target.values[a].shape != source.values[b].shape and a not in heads
        for a, b in zip(ours, theirs, strict=True)
    ):
        return
    for key, other in zip(ours, theirs, strict=True):
        if target.values[key].shape == source.values[other].shape:
            target.set_all(key, source.values[other])


def _similarity(source: TokenNetwork, target: TokenNetwork) -> float:
    """Return the product of the ratios, smaller to larger, of width, depth, heads, and hidden channels."""
    one, other = _sizes(source), _sizes(target)
    return prod(min(a, b) / max(a, b) for a, b in zip(one, other, strict=True))


def _sizes(network: TokenNetwork) -> tuple[int, ...]:
    attention = next(b for b in network.branches if b.attention is not None)
    mlp = next((b.hidden for b in network.branches if b.attention is None), 1)
    return network.width, len(network.branches), attention.heads[0], mlp


def _stream_map(
    source: nn.Module, of: TokenNetwork, to: TokenNetwork, images: torch.Tensor
) -> StreamMap:
    if of.width == to.width:
        return same_stream(of.width)
    turns = of.is_rotatable and to.is_rotatable
    if to.width > of.width:
        return widened(of.width, to.width) if turns else repeated(of.width, to.width)
    if turns:
        few = images[: max(_LEAST_IMAGES, _FLOPS // of.image_flops)]
        return principal(token_covariance(source, few, of.width).cpu(), to.width)
    return chosen(_channel_strengths(BranchWeights(source, of)), to.width)


def _channel_strengths(weights: BranchWeights) -> torch.Tensor:
    """Return for each channel of the stream the norm of what writes it times that of what reads it."""
    branches = weights.network.branches
    written = sum(weights.writer(b)[0].square().sum(1) for b in branches)
    read = torch.zeros(weights.network.width)
    for branch in branches:
        for part in branch.readers:
            order = torch.tensor(weights.network.stream_places(part.step.inputs)).argsort()
            read += (
                weights.matrix(part).flatten(1).square().sum(0).view(len(order), -1).sum(1)[order]
            )
    return (written * read).sqrt()
