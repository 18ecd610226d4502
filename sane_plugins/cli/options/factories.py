"""The option by which a user says what builds the networks of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import note
from sane_plugins.cli.options.trust import typed_trust

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.architectures import Trust
    from sane_plugins.host import Host
    from sane_plugins.recognition import NamedBuilder
    from sane_plugins.weights import WeightGraph

_CLASS_COUNTS = ("classes", "num_classes", "n_classes")

factory_option = click.option(
    "--factory",
    "factories",
    multiple=True,
    metavar="NAME",
    help="What builds the networks of the files: package.module:function, a name such as"
    " torchvision:resnet18, or a zoo whose networks have one; repeat for more.",
)


class Opener:
    """Opens sources; a file as a network that one of the factories builds, where any are given.

    `recognized` names by source the architectures of files that were recognised.
    """

    def __init__(self, host: Host, factories: Sequence[str]) -> None:
        self._host = host
        self.builders = [*named_builders(host, factories)]
        self.recognized: dict[str, tuple[str, ...]] = {}
        self._notes: dict[str, list[str]] = {}

    def __call__(self, source: str) -> WeightGraph:
        """Return the network of a source. Raises `SourceError` for a file that no factory builds."""
        graph = self._host.open(source)
        if self.builders:
            from sane_plugins.recognition import with_layers_built

            graph = with_layers_built(graph, self.builders)
        if graph.recognized:
            self.recognized[source] = graph.recognized
            self._notes.setdefault(graph.notes[0], []).append(source)
        return graph

    def tell_recognized(self) -> None:
        """Say on stderr which files were recognised, and as what."""
        for text, sources in self._notes.items():
            more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
            note(f"Note: {sources[0]}{more}: {text}.")


def named_builders(host: Host, factories: Sequence[str]) -> Iterator[NamedBuilder]:
    """Yield what builds networks: what is named itself, and what built the networks of a named zoo."""
    from sane_plugins.recognition import NamedBuilder
    from sane_plugins.zoo import is_zoo

    trust = typed_trust(factories, everything=False)
    for name in factories:
        if is_zoo(Path(name)):
            yield from _builders_of(Path(name), trust)
        else:
            yield NamedBuilder(name, partial(host.build, name))


def _builders_of(folder: Path, trust: Trust) -> Iterator[NamedBuilder]:
    from sane_plugins.architectures import describe_call
    from sane_plugins.recognition import NamedBuilder
    from sane_plugins.zoo import Zoo

    factories = {
        json.dumps(dict(entry.factory)): entry.factory
        for entry in Zoo.open(folder, trust).entries
        if entry.factory
    }
    for factory in factories.values():
        yield NamedBuilder(describe_call(factory), partial(_build, factory, trust))


def _build(factory: Mapping[str, Any], trust: Trust, classes: int | None) -> nn.Module:
    """Build what a zoo describes, for another class count where its description names one."""
    from sane_plugins.architectures import build

    count = next((key for key in _CLASS_COUNTS if key in factory), None)
    own = {} if classes is None or count is None else {count: classes}
    return build({**factory, **own}, trust)
