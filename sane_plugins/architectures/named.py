"""Networks by a collection's names: what the plugins of torchvision and timm have in common."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sane_plugins.architectures.names import family_name
from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.weights import WeightGraph


def open_named(source: Any, prefix: str, builder: str) -> WeightGraph | None:
    """Read what `builder.build` makes of a name behind `prefix`; None for any other source.

    The module `builder` is imported late: it needs the collection. What a name leaves to chance is drawn
    from seed 0: the same name is the same network.
    """
    if not _is_named(source, prefix):
        return None
    import torch

    from sane_plugins.weights import from_module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, notes = import_module(builder).build(source.removeprefix(prefix), None)
    graph = from_module(module, source)
    return replace(graph, notes=(*graph.notes, *notes))


def build_named(source: Any, prefix: str, builder: str, classes: int | None) -> nn.Module | None:
    """Build the network of a name behind `prefix`; None for any other source."""
    if not _is_named(source, prefix):
        return None
    module: nn.Module = import_module(builder).build(source.removeprefix(prefix), classes)[0]
    return module


def is_bare_name(source: Any) -> bool:
    """Tell whether a source is a network's name alone: no prefix, no path, and no family of ours."""
    name = re.split("[,@]", source)[0] if isinstance(source, str) else ""
    return re.fullmatch(r"[\w-]+", name) is not None and family_name(name) is None


def _is_named(source: Any, prefix: str) -> bool:
    return isinstance(source, str) and source.startswith(prefix)


def parse_name(named: str, classes: int | None, source: str) -> tuple[str, int | None, int | None]:
    """Return the name, the class count and the channels of NAME,option=N,... for so many `classes`.

    Raises `SourceError` for an unknown option, a number below 1, and another class count.
    """
    name, *texts = named.split(",")
    options: dict[str, int] = {}
    for text in texts:
        option, _, number = text.partition("=")
        if option not in ("classes", "channels") or not number.isdecimal() or not int(number):
            raise SourceError(
                source,
                f"'{text}' follows the name",
                "classes=N or channels=N may follow",
                "write NAME,classes=10,channels=1@WEIGHTS",
            )
        options[option] = int(number)
    wanted = options.get("classes", classes)
    if classes not in (None, wanted):
        raise SourceError(
            source,
            f"{wanted} classes follow the name",
            f"{classes} classes are needed here",
            "leave out classes=N",
        )
    return name, wanted, options.get("channels")
