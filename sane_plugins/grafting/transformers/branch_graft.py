"""Which branch of a transformer serves which of another, and how it is grafted through the map of the stream.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sane_plugins.grafting.transformers.branch_weights import BranchWeights
from sane_plugins.grafting.transformers.head_maps import (
    HeadWeights,
    HiddenWeights,
    fit_heads,
    fit_hidden,
)
from sane_plugins.grafting.transformers.stream_maps import StreamMap
from sane_plugins.grafting.transformers.structure import Branch
from sane_plugins.grafting.transformers.tracing import NormStep


class BranchGraft:
    """Writes source branches into target branches through one map of the stream."""

    def __init__(self, target: BranchWeights, source: BranchWeights, stream: StreamMap) -> None:
        self.target, self.source, self.stream = target, source, stream
        self.notes: list[str] = []

    def branch(self, to: Branch, of: Branch, share: float) -> None:
        """Write one branch, its output multiplied by `share`; norms and layer scale along with it."""
        write = self._hidden if to.attention is None else self._heads
        if write(to, of, share):
            self._norm(to.norm, of.norm)
            self._norm(to.post_norm, of.post_norm)
            for inner, trained in zip(to.inner_norms, of.inner_norms, strict=False):
                self._inner_norm(inner, trained)
        else:
            self.notes.append(f"{to.writer.step.key}: no weights of the prompt fit this branch")

    def tail(self) -> None:
        """Write the norms behind the last sum, and layers before the classifier where they fit."""
        pairs = zip(self.target.network.tail_norms, self.source.network.tail_norms, strict=False)
        for to, of in pairs:
            if len(to.channels) == self.target.network.width:
                self._norm(to, of)

    def _heads(self, to: Branch, of: Branch, share: float) -> bool:
        fresh, trained = self.target.heads(to), self.source.heads(of)
        if fresh is None or trained is None:
            return False
        output, bias = self._written(trained.output.flatten(1), trained.bias, to, of, share)
        mapped = replace(
            trained,
            queries=self._reading(trained.queries, of.norm, fresh.queries),
            keys=self._reading(trained.keys, of.norm, fresh.keys),
            values=self._reading(trained.values, of.norm, fresh.values),
            output=output.unflatten(1, trained.output.shape[1:]),
            bias=bias,
        )
        fitted: HeadWeights = fit_heads(mapped, fresh, may_mix=to.is_free and of.is_free)
        self.target.set_heads(to, fitted)
        return True

    def _hidden(self, to: Branch, of: Branch, share: float) -> bool:
        fresh, trained = self.target.hidden(to), self.source.hidden(of)
        if fresh is None or trained is None or fresh.reading.shape[1] != trained.reading.shape[1]:
            return False
        output, bias = self._written(trained.output, trained.bias, to, of, share)
        mapped = HiddenWeights(
            reading=self._reading(trained.reading, of.norm, fresh.reading),
            output=output,
            bias=bias,
        )
        self.target.set_hidden(to, fit_hidden(mapped, fresh))
        return True

    def _reading(
        self, rows: torch.Tensor, norm: NormStep | None, fresh: torch.Tensor
    ) -> torch.Tensor:
        """Return rows (..., D + 1) that read the target's stream as these read the source's."""
        weight, bias = rows[..., :-1], rows[..., -1]
        if self.stream.is_identity:
            return rows
        if self.stream.folds_norms and norm is not None:
            scale, shift = self._affine(self.source, norm)
            bias = bias + weight @ shift
            weight = weight * scale
        mapped = weight @ self.stream.read
        if self.stream.is_new.any():
            draws = fresh[..., :-1].flatten(0, -2)
            places = torch.arange(mapped.shape[:-1].numel()) % len(draws)
            draws = draws[places].view(mapped.shape)
            mapped = torch.where(self.stream.is_new, draws, mapped)
        return torch.cat((mapped, bias[..., None]), -1)

    def _written(
        self, weight: torch.Tensor, bias: torch.Tensor, to: Branch, of: Branch, share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what writes the target's stream as this (D, F), (D,) writes the source's."""
        ours, theirs = to.layer_scale, of.layer_scale
        identity = self.stream.is_identity
        if identity and ours and theirs:
            scale = share * self.source.vector(theirs)
            self.target.set_all(ours, scale)
            return weight, bias
        if theirs:
            scale = self.source.vector(theirs)
            weight, bias = weight * scale[:, None], bias * scale
            share = share / float(scale.square().mean().sqrt().clamp_min(1e-8)) if ours else share
        if ours:
            level = 1.0
            if theirs:
                level = float(self.source.vector(theirs).square().mean().sqrt().clamp_min(1e-8))
            self.target.set_all(ours, torch.full_like(self.target.vector(ours), level))
        if not identity:
            weight, bias = self.stream.write @ weight, self.stream.write @ bias
        return (weight * share, bias * share) if share != 1 else (weight, bias)

    def _norm(self, to: NormStep | None, of: NormStep | None) -> None:
        """Write a norm's scale and shift."""
        if to is None or of is None:
            return
        scale, shift = self._affine(self.source, of)
        if self.stream.folds_norms:
            scale, shift = torch.ones_like(scale), torch.zeros_like(shift)
        scale = scale * self.stream.norm_factor
        order = self._order(to)
        for key, values, default in ((to.weight, scale, 1.0), (to.bias, shift, 0.0)):
            if key is not None:
                mapped = self.stream.vector(values, default)
                self.target.set_all(key, mapped[order])

    def _inner_norm(self, to: NormStep, of: NormStep) -> None:
        """Write a norm of a head's channels, or of hidden ones, where both are of one size."""
        for key, trained in ((to.weight, of.weight), (to.bias, of.bias)):
            if key is None or trained is None:
                continue
            values = self.source.vector(trained)
            if len(values) == len(self.target.vector(key)):
                self.target.set_all(key, values)

    def _order(self, norm: NormStep) -> torch.Tensor:
        return torch.tensor(self.target.network.stream_places(norm.channels))

    def _affine(self, weights: BranchWeights, norm: NormStep) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a norm's scale and shift in the order of the stream."""
        order = torch.tensor(weights.network.stream_places(norm.channels)).argsort()
        width = weights.network.width
        scale = torch.ones(width) if norm.weight is None else weights.vector(norm.weight)[order]
        shift = torch.zeros(width) if norm.bias is None else weights.vector(norm.bias)[order]
        return scale, shift


@dataclass(frozen=True, kw_only=True)
class BranchPair:
    """The source branch of a target branch, and what its output is multiplied by."""

    source: int
    share: float


def match_branches(
    source: Sequence[Branch], target: Sequence[Branch]
) -> tuple[BranchPair | None, ...]:
    """Return a source branch of the same kind for each target branch, in order.

    Fewer: evenly spread, the first among them. More: each serves a run; together its copies add what it adds.
    """
    pairs: list[BranchPair | None] = [None] * len(target)
    for is_attention in (True, False):
        ours = [i for i, b in enumerate(target) if (b.attention is not None) == is_attention]
        theirs = [i for i, b in enumerate(source) if (b.attention is not None) == is_attention]
        if not theirs:
            continue
        picks = [k * len(theirs) // len(ours) for k in range(len(ours))]
        for place, pick in zip(ours, picks, strict=True):
            pairs[place] = BranchPair(source=theirs[pick], share=1 / picks.count(pick))
    return tuple(pairs)


def meeting_places(pairs: Sequence[BranchPair | None], count: int) -> Mapping[int, int]:
    """Return for target branches the source branch, of `count`, behind which the streams are to be alike.

    Left out are branches of a run of copies but the last, and all where a branch has no partner.
    """
    if any(pair is None for pair in pairs):
        return {}
    sources = [pair.source for pair in pairs if pair is not None]
    ends = [following - 1 for following in sources[1:]] + [count - 1]
    return {
        i: end
        for i, end in enumerate(ends)
        if max(sources[: i + 1]) <= end and all(later > end for later in sources[i + 1 :])
    }
