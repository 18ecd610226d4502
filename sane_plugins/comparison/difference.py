"""What is found of two networks: differences by tensor and by layer, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from sane_plugins.comparison.relation import Change, Relation
from sane_plugins.display import ShortRepr
from sane_plugins.weights import RUNNING, Param

LayerChange = Literal[Change, "scaled", "resized", "folded", "only_a", "only_b"]


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """A tensor in both networks, and how they differ once channels stand in one order.

    `permuted` says that this order is not the stored one, `transposed` that rows are columns
    of what each network takes as its rows. `channels` has
    the numbers of output and input channels that are in both where the shapes differ. `is_folded`: its
    factors are those of a norm that the other network has. `outputs` has the output channels that belong
    together, None where each stands at its place.
    """

    a: Param
    b: Param
    relation: Relation
    transposed: bool = False
    permuted: bool = False
    channels: tuple[int, ...] = ()
    is_folded: bool = False
    outputs: tuple[torch.Tensor, torch.Tensor] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def size(self) -> int:
        """Return the number of values of the larger of both."""
        return max(self.a.size, self.b.size)

    @property
    def is_turned(self) -> bool:
        """Return whether the two are stored with rows and columns exchanged."""
        has_rows = len(self.a.shape) > 1
        return has_rows and (self.a.axis != self.b.axis) != self.transposed

    @property
    def change(self) -> LayerChange:
        """Return what became of the tensor."""
        if self.channels and self.relation.change != "replaced":
            return "resized"
        if self.relation.change == "equal" and self.relation.scaling and not self.is_folded:
            return "scaled"
        return self.relation.change


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LayerDifference(ShortRepr):
    """A layer in both networks or in one. `folded_into`: the other network's layer that holds a norm."""

    name_a: str
    name_b: str
    kind: str
    tensors: tuple[TensorDifference, ...] = ()
    only_a: tuple[Param, ...] = ()
    only_b: tuple[Param, ...] = ()
    folded_into: str = ""

    @cached_property
    def size(self) -> int:
        """Return the number of values, each tensor counted in its larger form."""
        alone = (*self.only_a, *self.only_b)
        return sum(x.size for x in self.tensors) + sum(x.size for x in alone)

    @cached_property
    def main(self) -> TensorDifference | None:
        """Return the tensor that says what became of the layer: the largest, of those that are learned."""
        learned = [x for x in self.tensors if x.a.role not in RUNNING] or self.tensors
        return max(learned, key=lambda x: x.size, default=None)

    @cached_property
    def change(self) -> LayerChange:
        """Return what became of the layer: of an equal main tensor, the largest other change."""
        if self.folded_into:
            return "folded"
        if self.main is None:
            return "only_a" if self.only_a else "only_b"
        if self.main.change != "equal":
            return self.main.change
        others = [x for x in self.tensors if x.change != "equal"]
        if not others:
            return "changed" if self.only_a or self.only_b else "equal"
        return max(others, key=lambda x: x.size).change

    @property
    def told(self) -> TensorDifference | None:
        """Return the tensor whose figures stand for the layer."""
        if self.main is None or self.main.change == self.change:
            return self.main
        told = [x for x in self.tensors if x.change == self.change]
        return max(told, key=lambda x: x.size, default=self.main)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Network(ShortRepr):
    """What is told of one of the two networks. `missed` counts weights that could not be read."""

    source: str
    container: str
    parameters: int
    tensors: int
    dtypes: tuple[str, ...]
    missed: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkComparison(ShortRepr):
    """Two networks and their differences, layer by layer in the order of the first.

    `renamed` counts tensors that have another name in the other network, `other_values` tensors that are no
    weights (counters, for example) and differ, or are in one network only.
    """

    a: Network
    b: Network
    layers: tuple[LayerDifference, ...]
    renamed: int
    retyped: int
    reordered: bool
    other_values: tuple[str, ...]

    @cached_property
    def tensors(self) -> tuple[TensorDifference, ...]:
        """Return every tensor that is in both networks."""
        return tuple(x for layer in self.layers for x in layer.tensors)

    @cached_property
    def size(self) -> int:
        """Return the number of values of all layers, each tensor counted in its larger form."""
        return sum(layer.size for layer in self.layers)

    def share(self, layers: Sequence[LayerDifference]) -> float:
        """Return the part of all values that some layers hold."""
        return sum(layer.size for layer in layers) / max(self.size, 1)
