"""Networks by timm's names: `timm:resnet10t`, `timm:resnet10t,classes=7,channels=1@weights.pth`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.weights.graph import WeightGraph

PREFIX = "timm:"


@hookimpl
def sane_open(source: Any) -> WeightGraph | None:
    """Read a timm network. Raises `SourceError` for an unknown name or unfit weights."""
    if not _is_ours(source):
        return None
    from sane_plugins.weights.modules import from_module
    from sane_timm.build import build

    module, notes = build(source.removeprefix(PREFIX), None)
    graph = from_module(module, source)
    return replace(graph, notes=(*graph.notes, *notes))


@hookimpl
def sane_build(source: Any, classes: int | None) -> nn.Module | None:
    """Build a timm network with `classes` outputs."""
    if not _is_ours(source):
        return None
    from sane_timm.build import build

    return build(source.removeprefix(PREFIX), classes)[0]


def _is_ours(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(PREFIX)
