"""What one operation does to the channels of what it reads: the words that every table of operations uses.

`module_channels` says it of torch's modules, `function_channels` of its functions and methods, and an adapter
of its own format's operators. `sane_plugins.symmetry.propagate` follows channels through them.
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
"""One call as operations that are applied one after the other, mostly one."""

OPAQUE: ChannelOps = (ChannelOp("opaque"),)
"""Not known: no channel that it reads or gives may be permuted."""
POINTWISE: ChannelOps = (ChannelOp("pointwise"),)
"""Each value on its own: channels pass as they are."""
JOIN: ChannelOps = (ChannelOp("join"),)
"""Several inputs meet value by value: their channels must be permuted alike."""
SPATIAL = (2, 3, 4)
"""The axes after batch and channels of an image or a volume."""
