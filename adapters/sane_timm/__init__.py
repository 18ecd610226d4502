"""Networks by timm name: `timm:resnet10t`, `timm:resnet10t,classes=7,channels=1@weights.pth`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.architectures import build_named, open_named

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.weights import WeightGraph

_PREFIX_AND_BUILDER = ("timm:", "sane_timm.build")


@hookimpl
def sane_open(source: Any) -> WeightGraph | None:
    """Read a timm network. Raises `SourceError` for an unknown name or unfit weights."""
    return open_named(source, *_PREFIX_AND_BUILDER)


@hookimpl
def sane_build(source: Any, classes: int | None) -> nn.Module | None:
    """Build a timm network with `classes` outputs. Raises `SourceError` where it takes none."""
    return build_named(source, *_PREFIX_AND_BUILDER, classes)
