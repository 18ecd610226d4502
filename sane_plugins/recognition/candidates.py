"""Architectures that a network may be of, by its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sane_plugins.architectures import BuildCode, build, build_code, described_code
from sane_plugins.errors import SourceError
from sane_plugins.recognition.index import IndexedArchitecture, find_indexed
from sane_plugins.recognition.our_families import our_factories
from sane_plugins.recognition.signature import Counts, Shapes, Signature
from sane_plugins.recognition.topology import Names
from sane_plugins.weights import WeightGraph, strip_wrapper_prefixes

BuildNamed = Callable[[str, int | None], nn.Module]
"""Builds a library's network by a name such as `timm:resnet10t`, as `Host.build` does."""
_HEADLESS, _WITH_AUX = ",classes=0", ",aux=1"
_USUAL_CHANNELS = 3  # of images, which libraries build for
_UNTOLD = (
    "channels_in",
    "classes",
    "heads",
)  # arguments that are no part of an architecture's name


@dataclass(frozen=True, kw_only=True)
class ArchitectureCandidate:
    """An architecture that has a network's names and shapes, for these counts of classes and channels.

    `names` are the architecture's names of tensors by the network's. It is in the index, or one of ours that
    `factory` describes, or the network that a plugin knows by the name `published`. `is_by_order`: the names
    in the file are nobody's.
    """

    names: Names
    counts: Counts
    indexed: IndexedArchitecture | None = None
    factory: Mapping[str, Any] | None = None
    published: str | None = None
    is_by_order: bool = False

    @property
    def name(self) -> str:
        """Return the name by which it is built, such as `timm:resnet10t`; of ours, with its arguments."""
        if self.indexed is not None:
            return self.indexed.source
        if self.published is not None:
            return self.published
        own = {key: value for key, value in (self.factory or {}).items() if key not in _UNTOLD}
        return ",".join([str(own.pop("name")), *(f"{key}={value}" for key, value in own.items())])

    @property
    def label(self) -> str:
        """Return its name as a sentence shows it."""
        text = self.name.replace(_HEADLESS, " without classifier")
        return text.replace(_WITH_AUX, " with auxiliary heads").replace(":", " ", 1)

    def build(self, build_named: BuildNamed) -> nn.Module:
        """Build it with the network's class count; of a library, with the library's input channels."""
        if self.factory is not None:
            return build(self.factory)
        return build_named(self.name, self.counts.classes)

    def build_stored(self, build_named: BuildNamed) -> nn.Module:
        """Build what a file holds: its numbers of classes and of input channels."""
        classes, channels = self.counts.classes, self.counts.channels
        if self.factory is None and channels not in (None, _USUAL_CHANNELS) and classes:
            return self.build_for(build_named, classes)
        return self.build(build_named)

    def build_for(self, build_named: BuildNamed, classes: int) -> nn.Module:
        """Build it for a number of classes and the network's input channels, to be trained."""
        if self.factory is not None:
            return build({**self.factory, "classes": classes})
        return build_named(self._trained_name, classes)

    def code_for(self, classes: int) -> BuildCode:
        """Return the code that builds what `build_for` builds."""
        if self.factory is not None:
            return described_code({**self.factory, "classes": classes})
        return build_code(self._trained_name, classes)

    def require_indexed(self, shapes: Shapes) -> None:
        """Raise `SourceError` where what is installed, of these shapes, is not the network of the index."""
        if self.indexed is None:
            return
        expected = self.indexed.signature
        if Signature.of(shapes, expected.lengths) != expected:
            raise SourceError(
                self.name,
                "what is installed builds another network of that name",
                "names and shapes of all weights must fit",
                "install another version of the library",
            )

    @property
    def _trained_name(self) -> str:
        name = self.name.replace(_HEADLESS, "").replace(_WITH_AUX, "")
        if self.counts.channels not in (None, _USUAL_CHANNELS):
            name += f",channels={self.counts.channels}"
        return name


def find_candidates(graph: WeightGraph) -> list[ArchitectureCandidate]:
    """Return the architectures of our families or of the index that have a network's names and shapes."""
    stored = stored_shapes(graph)
    for names in plain_names(stored):
        shapes = {names[key]: shape for key, shape in stored.items()}
        for factory in our_factories(shapes):
            counts = Counts(factory["classes"], factory["channels_in"])
            return [ArchitectureCandidate(names=names, counts=counts, factory=factory)]
        found = [
            ArchitectureCandidate(names=names, counts=n, indexed=x) for x, n in find_indexed(shapes)
        ]
        if found:
            return found
    return []


def stored_shapes(graph: WeightGraph) -> Shapes:
    """Return the shapes of all weights of a network by name, under each name of those that it ties."""
    shapes = {param.key: param.shape for param in graph.params}
    return shapes | {alias: shapes[key] for alias, key in graph.ties.items() if key in shapes}


def in_file_order(graph: WeightGraph) -> Shapes:
    """Return a network's shapes in the order in which its file, or its module, holds the tensors."""
    places = {key: place for place, key in enumerate(graph.tensors)}
    shapes = stored_shapes(graph).items()
    return dict(sorted(shapes, key=lambda item: places.get(item[0], len(places))))


def plain_names(keys: Sequence[str] | Shapes) -> Iterator[Names]:
    """Yield the names as they are, then without wrappers, then without what stands in front of all."""
    names: Names = {key: key for key in keys}
    yield names
    plain = strip_wrapper_prefixes(keys)
    if plain.plain:
        names = {key: plain.of(key) for key in keys}
        yield names
    while len(prefixes := {name.partition(".")[0] for name in names.values()}) == 1:
        (prefix,) = prefixes
        if prefix in names.values():
            return
        names = {key: name.removeprefix(f"{prefix}.") for key, name in names.items()}
        yield names
