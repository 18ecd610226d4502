"""Effects of single operations on channels: the vocabulary shared by all operator tables.

`module_channels` covers torch's modules, `function_channels` its functions and methods, and an adapter the
operators of its format. `sane_plugins.symmetry.propagate` follows channels through them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sane_plugins.weights.layers import Kind


@dataclass(frozen=True)
class ChannelOp:
    """The kind of an operation with its `groups` and `dims`, as in `Layer`."""

    kind: Kind
    groups: int = 1
    dims: tuple[int, ...] = ()


ChannelOps = tuple[ChannelOp, ...]
"""The operations that one call applies in sequence, usually one."""

OPAQUE: ChannelOps = (ChannelOp("opaque"),)
"""Unknown: no channel of its inputs or outputs may be permuted."""
POINTWISE: ChannelOps = (ChannelOp("pointwise"),)
"""Elementwise on one input: channels are preserved."""
JOIN: ChannelOps = (ChannelOp("join"),)
"""Elementwise on several inputs: their channels must be permuted in the same way."""
SPATIAL = (2, 3, 4)
"""The axes after batch and channels of an image or a volume."""
