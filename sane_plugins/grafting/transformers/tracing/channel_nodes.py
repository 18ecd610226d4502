"""Channels as nodes of a union-find: each entry of each axis of each parameter is a node.

Two entries are united where they belong to one channel: an output of one layer and the input of the next,
summands, the bias and the norm behind.
The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

UNKNOWN = -1


class ChannelNodes:
    """The nodes of a network's parameters, by key and axis; new ones belong to values without parameters."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._first: dict[tuple[str, int], int] = {}
        count = 0
        for key, shape in shapes.items():
            for axis, size in enumerate(shape):
                self._first[key, axis] = count
                count += size
        self._parents = np.arange(count)
        self._is_flat = True

    def of(self, key: str, axis: int, entries: torch.Tensor) -> torch.Tensor:
        """Return the nodes of these entries of an axis."""
        return torch.where(entries < 0, entries, entries + self._first[key, axis])

    def new(self, count: int) -> torch.Tensor:
        """Return nodes that belong to no parameter."""
        first = len(self._parents)
        self._parents = np.append(self._parents, np.arange(first, first + count))
        return torch.arange(first, first + count)

    def roots(self, nodes: torch.Tensor) -> torch.Tensor:
        """Return each node's channel, named by one of its nodes; unknown ones stay unknown."""
        self._flatten()
        known = torch.from_numpy(self._parents)[nodes.clamp_min(0)]
        return torch.where(nodes < 0, nodes, known)

    def unite(self, ones: torch.Tensor, others: torch.Tensor) -> None:
        """Unite two tensors of nodes entry by entry, broadcast; nothing is done where one is unknown."""
        for one, other in _distinct_pairs(self.roots(ones), self.roots(others)):
            a, b = self._find(one), self._find(other)
            if a != b:
                self._parents[max(a, b)] = min(a, b)
                self._is_flat = False

    def _find(self, node: int) -> int:
        while self._parents[node] != node:
            self._parents[node] = self._parents[self._parents[node]]
            node = int(self._parents[node])
        return node

    def _flatten(self) -> None:
        while not self._is_flat:
            upper = self._parents[self._parents]
            self._is_flat = bool((upper == self._parents).all())
            self._parents = upper


def _distinct_pairs(ones: torch.Tensor, others: torch.Tensor) -> Iterable[tuple[int, int]]:
    ones, others = (x.flatten() for x in torch.broadcast_tensors(ones, others))
    is_known = (ones >= 0) & (others >= 0) & (ones != others)
    ones, others = ones[is_known], others[is_known]
    base = int(others.max()) + 1 if len(others) else 1
    return ((pair // base, pair % base) for pair in torch.unique(ones * base + others).tolist())
