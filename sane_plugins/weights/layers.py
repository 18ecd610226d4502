"""Layers and parameters of a network; modules and files group tensors into layers by the same rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

Role = Literal["weight", "bias", "scale", "shift", "running_mean", "running_var", "table", "other"]
MAX_AXES = 32
"""Axes of a tensor: as many as NumPy 1 computes with."""
RUNNING: tuple[Role, ...] = ("running_mean", "running_var")
"""Running statistics of a norm: measured on data, not learned."""
NORM_ROLES: Mapping[str, Role] = {
    "weight": "scale",
    "bias": "shift",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
"""The role of each parameter and buffer of a norm, by its torch name."""
_SHOWN_AXES = 8
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
    """One tensor of a layer: its key, role, shape and type, and the axis of its output channels."""

    key: str
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int = 0

    @property
    def size(self) -> int:
        """Return the number of values."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One operation of a network. `inputs` names the layers it reads; empty without topology.

    `groups` is that of a grouped convolution or of a group norm. `dims` names axes: the concatenated
    axis of a concat, the new order of a permute, the two exchanged axes of a transpose, the first
    axis of a flatten (which runs to the last one), the axes a squeeze drops or an unsqueeze adds, the
    axes a reduce brings to size 1 (a squeeze follows where they are dropped), the axes along which a
    pointwise layer moves or mixes values (pooling, padding), and those of a norm's parameters (empty
    means axis 1).
    """

    name: str
    kind: Kind
    params: tuple[Param, ...] = ()
    inputs: tuple[str, ...] = ()
    groups: int = 1
    dims: tuple[int, ...] = ()

    @property
    def is_value(self) -> bool:
        """Return whether the layer only holds tensors, which other layers read by its name."""
        return not self.inputs and (
            self.kind == "parameter" or any(param.key == self.name for param in self.params)
        )


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as a message shows it: of many axes, the first."""
    shown = ", ".join(map(str, shape[:_SHOWN_AXES])) + "," * (len(shape) == 1)
    return f"({shown})" if len(shape) <= _SHOWN_AXES else f"({shown}, ...: {len(shape)} axes)"


def layer_name(key: str) -> str:
    """Return the layer name of a tensor: its key without the last part, or a key of one part itself."""
    return key.rpartition(".")[0] or key


def vectors_last(params: Iterable[Param]) -> tuple[Param, ...]:
    """Return a layer's params with vectors last, so that a bias follows its matrix."""
    return tuple(sorted(params, key=lambda param: len(param.shape) < 2))
