"""One map for the whole residual stream: how its channels become those of a stream of another width.

Wider, behind layer norms only, is exact: the source's centred stream, scaled by the root of the ratio
of the widths, keeps its mean and deviation, whatever the ratio. Narrower keeps the directions in which
the tokens vary most. Elsewhere channels are repeated, and what reads them divided by the copies, or the
strongest are kept.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sane_plugins.grafting.transformers.tracing import plain_operators
from sane_plugins.weights import evaluation_copy

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamMap:
    """From a source stream of D channels to a target's of E.

    `write` (E, D) maps what is added to the stream. `read` (D, E) returns the source's values to what
    reads them, behind the norm where the source has one. `index` (E,) names the source channel of each
    target channel, -1 where it has none; with `folds_norms` channels are mixed, and norms become part of
    what reads them.
    `is_new` (E,) marks channels that are zero at first, so that anything may read them; norms' scales of
    the others are multiplied by `norm_factor`.
    """

    write: torch.Tensor
    read: torch.Tensor
    index: torch.Tensor
    folds_norms: bool
    is_new: torch.Tensor
    norm_factor: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Return whether streams are the same, channel by channel."""
        width = len(self.index)
        return self.write.shape[1] == width and torch.equal(self.index, torch.arange(width))

    def vector(self, values: torch.Tensor, default: float) -> torch.Tensor:
        """Return a number per source channel as one per target channel."""
        found = values[self.index.clamp_min(0)]
        return torch.where(self.index >= 0, found, torch.full_like(found, default))


def same_stream(width: int) -> StreamMap:
    """Return the map between streams of one width."""
    identity = torch.eye(width)
    none = torch.zeros(width, dtype=torch.bool)
    index = torch.arange(width)
    return StreamMap(write=identity, read=identity, index=index, folds_norms=False, is_new=none)


def widened(source: int, target: int) -> StreamMap:
    """Return the exact map to a wider stream that is read behind layer norms."""
    centred = torch.eye(source) - 1 / source
    write, read = torch.zeros(target, source), torch.zeros(source, target)
    write[:source] = sqrt(target / source) * centred
    read[:, :source] = torch.eye(source)
    places = torch.arange(target)
    index = torch.where(places < source, places, -torch.ones_like(places))
    return StreamMap(
        write=write,
        read=read,
        index=index,
        folds_norms=False,
        is_new=index < 0,
        norm_factor=sqrt(source / target),
    )


def repeated(source: int, target: int) -> StreamMap:
    """Return the map that repeats channels in turn; exact behind a norm where each has as many copies."""
    index = torch.arange(target) % source
    write = torch.eye(source)[index]
    read = write.T / write.sum(0)[:, None]
    none = torch.zeros(target, dtype=torch.bool)
    return StreamMap(write=write, read=read, index=index, folds_norms=False, is_new=none)


def chosen(strengths: torch.Tensor, target: int) -> StreamMap:
    """Return the map to the strongest channels, in their order; `strengths` is a number for each channel."""
    index = strengths.topk(target).indices.sort().values
    write = torch.eye(len(strengths))[index]
    none = torch.zeros(target, dtype=torch.bool)
    return StreamMap(write=write, read=write.T, index=index, folds_norms=False, is_new=none)


def principal(covariance: torch.Tensor, target: int) -> StreamMap:
    """Return the map to the directions (E - 1 of them) in which normalised tokens vary most.

    They lie across the direction of the mean, which layer norm takes away. The method: Ashkboos et al.,
    "SliceGPT", ICLR 2024, section 3, with one basis for the whole stream.
    """
    source = len(covariance)
    directions = torch.linalg.eigh(covariance.double()).eigenvectors[:, -(target - 1) :]
    complement = _sum_free_basis(target).double()
    # Of all bases of the target's stream, that which keeps most channels where they were.
    strongest = covariance.diagonal().topk(target).indices.sort().values
    kept = complement.T @ torch.eye(source, dtype=torch.float64)[strongest] @ directions
    left, _, right = torch.linalg.svd(kept)
    turn = (complement @ left @ right @ directions.T).float()
    ratio = sqrt(target / source)
    index = torch.full((target,), -1)
    return StreamMap(
        write=ratio * turn,
        read=turn.T / ratio,
        index=index,
        folds_norms=True,
        is_new=torch.zeros(target, dtype=torch.bool),
    )


def _sum_free_basis(width: int) -> torch.Tensor:
    """Return orthonormal columns (width, width - 1) across the direction of ones."""
    ones = torch.ones(width, 1, dtype=torch.float64) / sqrt(width)
    units = torch.eye(width, dtype=torch.float64)[:, 1:]
    basis: torch.Tensor = torch.linalg.qr(torch.cat((ones, units), 1)).Q
    return basis[:, 1:]


@torch.no_grad()
def token_covariance(module: nn.Module, images: torch.Tensor, width: int) -> torch.Tensor:
    """Return the covariance (D, D) of what layer norms of that width make of tokens, over images."""
    copied = evaluation_copy(module)
    with plain_operators(), _NormInputs(width) as norms:
        for batch in images.split(_BATCH_SIZE):
            copied(batch)
    covariance: torch.Tensor = norms.moment / max(norms.count, 1)
    return covariance


class _NormInputs(TorchDispatchMode):
    """Sums the products of channels of what layer norms of one width make, without their scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.count = width, 0
        self.moment = torch.zeros(width, width)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm.default and args[1] == [self.width]:
            tokens = args[0].detach().reshape(-1, self.width).float()
            tokens = tokens - tokens.mean(1, keepdim=True)
            tokens = tokens / tokens.std(1, keepdim=True, correction=0).clamp_min(1e-6)
            self.moment = self.moment.to(tokens.device) + tokens.T @ tokens
            self.count += len(tokens)
        return result
