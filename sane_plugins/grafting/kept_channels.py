"""Which channels of a network its pruned copy has kept, told by their weights alone.

The method: docs/explanation/sane.md, section 16.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from sane_plugins.grafting.matching import Matching, Pair
from sane_plugins.grafting.units import NetworkUnits, Unit

LEAST_LIKENESS = 0.5
"""Cosine between the weights of both networks, below which one is no pruned copy of the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptChannels:
    """A pruned network beside its dense one: every layer's partner, and which channels were kept.

    `maps` holds for a pair of groups (pruned, dense) the dense channel of each pruned one, (C,) int64.
    `likeness` is the cosine between both networks' weights, of the kept channels.
    """

    matching: Matching
    maps: Mapping[tuple[int, int], torch.Tensor]
    likeness: float


def find_kept_channels(dense: NetworkUnits, pruned: NetworkUnits) -> KeptChannels | None:
    """Return which channels were kept; None where one network is not the other with fewer channels.

    Both must run the same layers in the same order, each of the pruned network at most as wide as its partner
    and one narrower. Weights may have been trained since, as long as their cosine is above `LEAST_LIKENESS`.
    """
    if len(dense.units) != len(pruned.units):
        return None
    comparison = _Comparison(dense, pruned)
    if not all(comparison.add(*pair) for pair in zip(pruned.units, dense.units, strict=True)):
        return None
    if not comparison.maps or comparison.likeness < LEAST_LIKENESS:
        return None
    pairs = {
        ours.name: Pair(target=ours, sources=(theirs,), similarity=1.0)
        for ours, theirs in zip(pruned.units, dense.units, strict=True)
    }
    blocks = tuple((number, number) for number in range(len(pruned.blocks)))
    matching = Matching(pairs=pairs, blocks=blocks, similarity=comparison.likeness)
    return KeptChannels(matching=matching, maps=comparison.maps, likeness=comparison.likeness)


class _Comparison:
    """Compares units in the order of execution: what a unit reads is known from those before it."""

    def __init__(self, dense: NetworkUnits, pruned: NetworkUnits) -> None:
        self._dense, self._pruned = dense, pruned
        self.maps: dict[tuple[int, int], torch.Tensor] = {}
        self._product = self._ours = self._theirs = 0.0

    @property
    def likeness(self) -> float:
        """Return the cosine between all weights that were compared."""
        return float(self._product / max((self._ours * self._theirs) ** 0.5, 1e-30))

    def add(self, ours: Unit, theirs: Unit) -> bool:
        """Compare a unit with its partner; return whether it can be that with fewer channels."""
        if not _are_of_one_form(ours, theirs):
            return False
        read = self._read(ours, theirs)
        if read is None:
            return False
        mine, other = (
            network.weight(unit).detach().double().cpu().flatten(1)
            for network, unit in ((self._pruned, ours), (self._dense, theirs))
        )
        other = other[:, read]
        if mine.shape[1] != other.shape[1]:
            return False
        chosen = self._written(ours, theirs, mine, other)
        if chosen is None:
            return False
        if ours.place != "classifier":
            other = other[chosen]
            self._product += float((mine * other).sum())
            self._ours += float(mine.square().sum())
            self._theirs += float(other.square().sum())
        return True

    def _read(self, ours: Unit, theirs: Unit) -> torch.Tensor | None:
        """Return for each weight of a row of ours its place in a row of the dense unit's weight."""
        taps = prod(ours.kernel)
        if ours.kind == "depthwise":
            return torch.arange(taps)
        channels = self._axis(ours.inputs, theirs.inputs)
        if channels is None:
            return None
        if ours.groups > 1:  # a row reads its own group's channels: these must all be there
            width = sum(self._dense.groups[group].size for group in theirs.inputs)
            return torch.arange(width // ours.groups * taps) if len(channels) == width else None
        size = taps * prod(ours.positions)
        return (channels[:, None] * size + torch.arange(size)).flatten()

    def _axis(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> torch.Tensor | None:
        parts, start = [], 0
        for one, other in zip(ours, theirs, strict=True):
            width = self._dense.groups[other].size
            if self._pruned.groups[one].size == width:
                found = torch.arange(width)
            elif (one, other) in self.maps:
                found = self.maps[one, other]
            else:
                return None
            parts.append(found + start)
            start += width
        return torch.cat(parts)

    def _written(
        self, ours: Unit, theirs: Unit, mine: torch.Tensor, other: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the dense channel of each of ours; note the maps of narrower groups."""
        if len(mine) == len(other):
            return torch.arange(len(mine))
        known = self._axis(ours.outputs, theirs.outputs)
        if known is not None:
            return known if len(known) == len(mine) else None
        if len(ours.outputs) != 1 or len(mine) > len(other):
            return None
        likeness = normalize(self._described(self._pruned, ours, mine), dim=1)
        likeness = likeness @ normalize(self._described(self._dense, theirs, other), dim=1).T
        columns = linear_sum_assignment(likeness.numpy(), maximize=True)[1]
        chosen = torch.from_numpy(columns).long()
        self.maps[ours.outputs[0], theirs.outputs[0]] = chosen
        return chosen

    def _described(self, network: NetworkUnits, unit: Unit, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of weights with what the norm behind them learnt, (C, F)."""
        keys = unit.norm.keys if unit.norm else {}
        learnt = [network.tensor(keys.get(role)) for role in ("scale", "shift")]
        known = [x.double().cpu()[:, None] for x in learnt if x is not None and len(x) == len(rows)]
        return torch.cat([rows, *known], 1)


def _are_of_one_form(ours: Unit, theirs: Unit) -> bool:
    forms = [
        (x.kind, x.kernel, x.stride, x.positions, x.place, len(x.inputs), len(x.outputs))
        for x in (ours, theirs)
    ]
    are_grouped_alike = ours.kind == "depthwise" or ours.groups == theirs.groups
    return forms[0] == forms[1] and are_grouped_alike
