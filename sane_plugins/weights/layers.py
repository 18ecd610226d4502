"""Layers of a network and their parameters, as every source describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Role = Literal["weight", "bias", "scale", "shift", "running_mean", "running_var", "table", "other"]
RUNNING: tuple[Role, ...] = ("running_mean", "running_var")
"""What a norm measures on data, and does not learn."""
Kind = Literal[
    # layers with weights
    "conv",
    "transposed_conv",
    "linear",
    "norm",
    "embedding",
    "recurrent",
    "attention",
    "parameter",
    # what connects them
    "input",
    "output",
    "pointwise",
    "join",
    "concat",
    "flatten",
    "permute",
    "opaque",
    "reduce",
    "squeeze",
    "unsqueeze",
    "transpose",
    # a source without topology
    "unknown",
]


@dataclass(frozen=True, kw_only=True)
class Param:
    """One tensor's place: where it is kept, what it does, which axis holds the output channels."""

    key: str
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int = 0

    @property
    def size(self) -> int:
        """Return the number of values."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step of a network. `inputs` names the layers it reads; empty without topology.

    `groups` is that of a grouped convolution or of a group norm. `dims` names axes: the concatenated
    axis of a concat, the new order of a permute, the two exchanged axes of a transpose, the first
    axis of a flatten (which runs to the last one), the axes a squeeze drops or an unsqueeze adds, the
    axes a reduce brings to size 1 (a squeeze follows where they are dropped), the axes along which a
    pointwise layer moves or mixes values (pooling, padding), and those of a norm's parameters (none
    stands for axis 1).
    """

    name: str
    kind: Kind
    params: tuple[Param, ...] = ()
    inputs: tuple[str, ...] = ()
    groups: int = 1
    dims: tuple[int, ...] = ()
