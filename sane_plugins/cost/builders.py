"""Find what builds the network of a name, a module or a file: its cost needs no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.formats import exists, is_hub_name
from sane_plugins.recognition import Recognizer, build_on_meta
from sane_plugins.runtime import drawing_from
from sane_plugins.weights import WeightGraph, copy_module


@dataclass(frozen=True, kw_only=True)
class BuildableNetwork:
    """A network that can be built, by what names it, and notes on what was taken for it.

    `module` is the network itself, where a module was given.
    """

    name: str
    build: Callable[[], nn.Module]
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None

    def on_meta(self) -> nn.Module:
        """Return the module that was given, or build one without memory for its weights where possible."""
        if self.module is not None:
            return self.module
        try:
            return build_on_meta(self.build)
        except SaneError:  # some need values; its own error is told where these do not help
            return self.with_values()

    def with_values(self) -> nn.Module:
        """Build it with weights drawn anew, without drawing from the program's generator."""
        with drawing_from(torch.Generator().manual_seed(0)):
            return self.build()


def find_network(
    source: Any, open_source: Callable[[Any], WeightGraph], recognizer: Recognizer
) -> BuildableNetwork:
    """Return what builds the network of a source; weights that a name asks for are left out.

    Raises `SourceError` for a file whose architecture is not known here.
    """
    if isinstance(source, nn.Module):
        name = type(source).__name__
        return BuildableNetwork(name=name, build=lambda: copy_module(source), module=source)
    if isinstance(source, str) and not exists(source) and not is_hub_name(source):
        name = source.partition("@")[0]
        return BuildableNetwork(name=source, build=lambda: recognizer.build_named(name, None))
    graph = open_source(source)
    name = str(source) if isinstance(source, str | Path) else graph.source
    problem = "its architecture is not known here"
    for candidate in recognizer.likely_candidates(graph):
        found = BuildableNetwork(
            name=name,
            build=lambda candidate=candidate: candidate.build_stored(recognizer.build_named),  # type: ignore[misc]
            notes=graph.notes[:1] if graph.recognized else (f"it is taken for {candidate.label}",),
        )
        try:
            found.on_meta()
        except SaneError as error:  # the library may be missing, or of another version
            problem = f"{error.place}: {error.found}"
            continue
        return found
    raise SourceError(
        name,
        problem,
        "what it costs follows from the code that runs it",
        "name what builds it with --factory package.module:function",
    )
