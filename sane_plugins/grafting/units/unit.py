"""The units of a network: its convolutions and linear layers as they run, and what belongs to each.

The method: docs/explanation/sane.md, section 15.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from sane_plugins.display import ShortRepr
from sane_plugins.grafting.connections import Activation
from sane_plugins.grafting.units.blocks import Place
from sane_plugins.grafting.units.channel_axes import ChannelGroup
from sane_plugins.weights import Param, Role, WeightGraph

UnitKind = Literal["conv", "depthwise", "linear"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Norm(ShortRepr):
    """A norm: its name, its module where it is one, and the keys of its tensors by role.

    Roles are "scale", "shift", "running_mean" and "running_var"; it is a batch norm where it has the last.
    """

    name: str
    module: nn.Module | None
    keys: Mapping[Role, str]

    @property
    def eps(self) -> float:
        """Return what is added to the variance."""
        return float(getattr(self.module, "eps", None) or 0.0)

    @property
    def has_statistics(self) -> bool:
        """Return whether it divides by statistics that it keeps."""
        return "running_var" in self.keys


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Unit(ShortRepr):
    """A convolution or linear layer, in the order of execution.

    `inputs` and `outputs` are the channel groups (numbers in `NetworkUnits.groups`) of the axes that it
    reads and returns, in order; a linear layer that reads flattened maps has `positions` (height, width)
    entries per channel, any other (). `read` and `grid` are the sizes in pixels of the maps that it reads
    and returns, () for a vector; `halvings` is log2 of image side / grid side. `norm` normalises its
    output, `norm_before` what it reads (where that is no unit's output); `scale` is the key of a vector that
    multiplies its output; `activation` is applied behind these. `block` counts blocks in order. `ends_gate`:
    its output, through an activation, multiplies; `ends_identity_block`: its output is added to what the
    block has read.
    """

    name: str
    module: nn.Module
    kind: UnitKind
    weight: str
    bias: str | None
    kernel: tuple[int, ...]
    stride: int
    groups: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    positions: tuple[int, ...]
    read: tuple[int, ...]
    grid: tuple[int, ...]
    halvings: float
    norm: Norm | None
    norm_before: Norm | None
    scale: str | None
    activation: Activation | None
    block: int
    place: Place
    ends_gate: bool
    ends_identity_block: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys of its tensors and those of its norms."""
        norms = [key for x in (self.norm, self.norm_before) if x for key in x.keys.values()]
        own = [key for key in (self.weight, self.bias, self.scale) if key is not None]
        return (*own, *norms)


@dataclass(frozen=True, kw_only=True)
class ExtraTensor:
    """A tensor of no unit, the name of the unit that it stands behind, and its number there.

    Tensors of one role and rank that stand behind one unit are numbered.
    """

    param: Param
    behind: str | None
    index: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkUnits(ShortRepr):
    """All units of a network in the order of execution, its channel groups, other tensors and weights.

    `is_traced`: the connections are known; where they are not, blocks are modules, and each axis has channel
    groups of its own. `image` is the shape (C, H, W) that was run.
    """

    graph: WeightGraph
    units: tuple[Unit, ...]
    groups: tuple[ChannelGroup, ...]
    extras: tuple[ExtraTensor, ...]
    image: tuple[int, ...]
    is_traced: bool
    notes: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Unit]:
        """Return the units by name."""
        return {unit.name: unit for unit in self.units}

    @cached_property
    def blocks(self) -> tuple[tuple[Unit, ...], ...]:
        """Return the units of each block, blocks in order; the classifier is in none."""
        members: dict[int, list[Unit]] = {}
        for unit in self.units:
            if unit.place != "classifier":
                members.setdefault(unit.block, []).append(unit)
        return tuple(tuple(members[block]) for block in sorted(members))

    @property
    def classifier(self) -> Unit | None:
        """Return the unit whose output is the network's."""
        return next((unit for unit in self.units if unit.place == "classifier"), None)

    @property
    def halvings(self) -> float:
        """Return how often the network halves its images at most, on its way to the last map."""
        return max((unit.halvings for unit in self.units), default=0.0)

    def weight(self, unit: Unit) -> torch.Tensor:
        """Return a unit's weight (out, in / groups, ...) as its module computes it."""
        return self.graph.tensors[unit.weight]

    def tensor(self, key: str | None) -> torch.Tensor | None:
        """Return a tensor, or None for no key."""
        return None if key is None else self.graph.tensors[key]
