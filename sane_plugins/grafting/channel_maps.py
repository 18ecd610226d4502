"""Index maps between the channels of two networks: one for each pair of channel groups.

Whatever writes or reads a group uses the same map, so that a graft computes what its source does.
The method: docs/explanation/sane.md, section 15.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

import torch

from sane_plugins.grafting.matching import Matching, Pair
from sane_plugins.grafting.units import NetworkUnits, Unit

Groups = tuple[int, ...]


class ChannelMaps:
    """Which channel of the source each channel of the target is.

    `known` maps pairs of groups (target, source) of which that has been found otherwise.
    """

    def __init__(
        self,
        source: NetworkUnits,
        target: NetworkUnits,
        matching: Matching,
        known: Mapping[tuple[int, int], torch.Tensor] | None = None,
    ) -> None:
        self.source, self.target = source, target
        self._known = known or {}
        self._partners = _partners(matching)
        self._offsets = self._shared_offsets()
        self._orders = cache(self._order)
        self._maps = cache(self._map)

    def outputs(self, pair: Pair) -> torch.Tensor:
        """Return the source channel (entry of its output axis) of each of the target unit's outputs."""
        return self.axis(pair.target.outputs, pair.sources[-1].outputs)

    def inputs(self, pair: Pair) -> torch.Tensor:
        """Return the source channel (entry of its input axis) of each channel that the target unit reads."""
        return self.axis(pair.target.inputs, pair.sources[0].inputs)

    def axis(self, target: Groups, source: Groups) -> torch.Tensor:
        """Return for each channel of an axis of the target the channel of an axis of the source: (C,) int64.

        Axes of equally many groups are mapped group by group. Else a target's group is mapped to its
        partner where the source's axis holds that, and to the whole axis where not.
        """
        if len(target) == len(source):
            return self._joined(
                target, [(group, self._start(source, i)) for i, group in enumerate(source)]
            )
        starts = {group: self._start(source, i) for i, group in reversed([*enumerate(source)])}
        partners = [self._partner(group, source) for group in target]
        if all(partner is not None for partner in partners):
            return self._joined(target, [(p, starts[p]) for p in partners if p is not None])
        size = sum(self.target.groups[group].size for group in target)
        return torch.arange(size) % sum(self.source.groups[group].size for group in source)

    def _joined(self, target: Groups, source: list[tuple[int, int]]) -> torch.Tensor:
        maps = [
            self._maps(group, partner) + start
            for group, (partner, start) in zip(target, source, strict=True)
        ]
        return torch.cat(maps)

    def _start(self, groups: Groups, index: int) -> int:
        return sum(self.source.groups[group].size for group in groups[:index])

    def _partner(self, group: int, source: Groups) -> int | None:
        """Return the group of an axis that a target's group has come from most, if any."""
        counts = self._partners.get(group, Counter())
        return max((x for x in source if counts[x]), key=lambda x: counts[x], default=None)

    def _map(self, target: int, source: int) -> torch.Tensor:
        """Return the map of a pair of groups; groups of one size keep their order."""
        if (target, source) in self._known:
            return self._known[target, source]
        size, offset = self.target.groups[target].size, self._offsets.get((target, source), 0)
        width = self.source.groups[source].size
        if size == width and not offset:
            return torch.arange(size)
        are_free = not (
            self.target.groups[target].is_ordered or self.source.groups[source].is_ordered
        )
        order = self._orders(source) if are_free else torch.arange(width)
        if offset:
            return order[(torch.arange(size) + offset) % width]
        if size < width:
            return order[:size].sort().values
        return torch.cat([torch.arange(width), order[torch.arange(size - width) % width]])

    def _order(self, group: int) -> torch.Tensor:
        """Return a source group's channels, the most important first.

        A channel counts the sum, over all that write it, of |scale| times the norm of its filter.
        """
        total = torch.zeros(self.source.groups[group].size, dtype=torch.float64)
        for unit in self.source.units:
            if unit.outputs == (group,):
                total += _importance(self.source, unit)
        return total.argsort(descending=True, stable=True)

    def _shared_offsets(self) -> dict[tuple[int, int], int]:
        """Return where in its partner's order a target's group starts.

        Groups of one concatenated axis that have the same partner get one part of it after the other.
        """
        offsets: dict[tuple[int, int], int] = {}
        for unit in self.target.units:
            used: Counter[int] = Counter()
            for group in unit.inputs if len(unit.inputs) > 1 else ():
                partners = self._partners.get(group)
                if partners:
                    partner = partners.most_common(1)[0][0]
                    offsets.setdefault((group, partner), used[partner])
                    used[partner] += self.target.groups[group].size
        return offsets


def _partners(matching: Matching) -> dict[int, Counter[int]]:
    """Return for each target group the source groups that its writers' and readers' partners have there."""
    partners: dict[int, Counter[int]] = {}
    for pair in matching.pairs.values():
        for ours, theirs, weight in (
            (pair.target.outputs, pair.sources[-1].outputs, 2),
            (pair.target.inputs, pair.sources[0].inputs, 1),
        ):
            if len(theirs) == 1:
                theirs = theirs * len(ours)
            if len(ours) == len(theirs):
                for group, partner in zip(ours, theirs, strict=True):
                    partners.setdefault(group, Counter())[partner] += weight
    return partners


def _importance(network: NetworkUnits, unit: Unit) -> torch.Tensor:
    """Return |scale| times filter norm of each output of a unit, (C,) float64."""
    value: torch.Tensor = network.weight(unit).double().flatten(1).norm(dim=1).cpu()
    scale = network.tensor(unit.norm.keys.get("scale")) if unit.norm else None
    if scale is None or scale.shape != value.shape:
        return value
    return value * scale.double().abs().cpu()
