"""Recognise the architecture of a network that says nothing but its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

from sane_plugins.errors import SaneError
from sane_plugins.formats import declared_architecture
from sane_plugins.recognition.by_factory import NamedBuilder, find_published
from sane_plugins.recognition.by_order import find_by_order
from sane_plugins.recognition.candidates import ArchitectureCandidate, BuildNamed, find_candidates
from sane_plugins.recognition.meta_build import build_on_meta
from sane_plugins.recognition.signature import float_shapes
from sane_plugins.recognition.topology import (
    topology_digest,
    with_kinds,
    with_layers_of,
    with_own_layer_names,
)
from sane_plugins.weights import Kind, WeightGraph, from_module

_MAX_SHOWN = 5  # names of a note
_MAX_KEPT = 64  # architectures whose connections are kept
_LOST = "how its layers are connected is not known here"
_UNKNOWN: tuple[Kind, int] = ("unknown", 1)


class Recognizer:
    """Recognises networks, and gives them the layers of what a host builds by their names.

    `published` returns what builds the networks of so many tensors that plugins know.
    """

    def __init__(
        self,
        build_named: BuildNamed,
        published: Callable[[int], Sequence[NamedBuilder]] = lambda _: (),
    ) -> None:
        self.build_named = build_named
        self._published = published
        self._networks: dict[str, WeightGraph] = {}
        self._lock = Lock()  # of the networks: threads share a host

    def recognize(self, graph: WeightGraph) -> WeightGraph:
        """Return a network with kinds, connections and order of the architecture that it is of.

        Where several have its names and shapes, what they agree on is used. The same graph comes back where
        there is none.
        """
        candidates = self._named_candidates(graph)
        if not candidates:
            return self._recognize_by_order(graph)
        recognized, note = tuple(x.name for x in candidates), _describe(candidates)
        reason = "each connects them in another way"
        if _are_connected_alike(candidates):
            for candidate in candidates:
                try:
                    connected = with_layers_of(graph, self._network(candidate), candidate.names)
                except SaneError as error:
                    reason = f"{error.place}: {error.found}; {error.way_out}"
                    continue
                if connected is None:
                    reason = "tensors that it ties differ"
                    continue
                notes = (note, *connected.notes)
                return replace(connected, recognized=recognized, notes=notes)
        notes = (f"{note}, but {_LOST} ({reason})", *graph.notes)
        return replace(_with_common_kinds(graph, candidates), recognized=recognized, notes=notes)

    def likely_candidates(self, graph: WeightGraph) -> list[ArchitectureCandidate]:
        """Return what a network may be of; nothing where these are connected in several ways."""
        candidates = self._named_candidates(graph)
        if candidates:
            return candidates if _are_connected_alike(candidates) else []
        candidates = self._ordered_candidates(graph)
        return candidates if self._connect_alike(graph, candidates) else []

    def _named_candidates(self, graph: WeightGraph) -> list[ArchitectureCandidate]:
        if candidates := _as_declared(graph, find_candidates(graph)):
            return candidates
        return find_published(graph, self._published(len(graph.params) + len(graph.ties)))

    def _ordered_candidates(self, graph: WeightGraph) -> list[ArchitectureCandidate]:
        return _as_declared(graph, find_by_order(graph, self.build_named))

    def _recognize_by_order(self, graph: WeightGraph) -> WeightGraph:
        """Return a network of unknown names with the layers of the one architecture that it may be of."""
        candidates = self._ordered_candidates(graph)
        connected = self._connect_alike(graph, candidates)
        if connected is None:
            return graph
        notes = (_describe_by_order(candidates), *connected.notes)
        return replace(connected, recognized=tuple(x.name for x in candidates), notes=notes)

    def _connect_alike(
        self, graph: WeightGraph, candidates: Sequence[ArchitectureCandidate]
    ) -> WeightGraph | None:
        """Return a network with the layers on which candidates by order agree; None where they do not."""
        by_names: dict[int, list[ArchitectureCandidate]] = {}
        for candidate in candidates:
            by_names.setdefault(id(candidate.names), []).append(candidate)
        found = []
        for group in by_names.values():
            connected = self._connect(graph, group) if _are_connected_alike(group) else None
            if connected is None:
                return None
            found.append(connected)
        return found[0] if len({*map(topology_digest, found)}) == 1 else None

    def _connect(
        self, graph: WeightGraph, candidates: Sequence[ArchitectureCandidate]
    ) -> WeightGraph | None:
        """Return a network with the layers of the first candidate that can be built, under its own names."""
        for candidate in candidates:
            try:
                connected = with_layers_of(graph, self._network(candidate), candidate.names)
            except SaneError:
                continue
            return connected and with_own_layer_names(connected, candidate.names)
        return None

    def _network(self, candidate: ArchitectureCandidate) -> WeightGraph:
        """Return an architecture's network, without values. Raises `SaneError` where it cannot be built."""
        with self._lock:
            network = self._networks.get(candidate.name)
        if network is None:
            module = build_on_meta(lambda: candidate.build(self.build_named))
            candidate.require_indexed(float_shapes(module))
            network = from_module(module, candidate.name)
            with self._lock:
                self._networks[candidate.name] = network
                for name in [*self._networks][:-_MAX_KEPT]:
                    del self._networks[name]
        return network


def _are_connected_alike(candidates: Sequence[ArchitectureCandidate]) -> bool:
    return len({x.indexed.topology for x in candidates if x.indexed}) <= 1


def _as_declared(
    graph: WeightGraph, candidates: list[ArchitectureCandidate]
) -> list[ArchitectureCandidate]:
    """Return the one that `config.json` beside a file names; all where it names none of them."""
    declared = declared_architecture(graph.source) if len(candidates) > 1 else None
    name = f"timm:{(declared or '').partition('.')[0]}"
    return [x for x in candidates if x.name.partition(",")[0] == name] or candidates


def _with_common_kinds(
    graph: WeightGraph, candidates: Sequence[ArchitectureCandidate]
) -> WeightGraph:
    """Return a network with the kinds of layers that all candidates have; other kinds stay as they are."""
    kinds = [x.indexed.kinds for x in candidates if x.indexed and x.indexed.kinds_text]
    if not kinds:
        return graph
    common = [same[0] if len({*same}) == 1 else _UNKNOWN for same in zip(*kinds, strict=True)]
    return with_kinds(graph, common, candidates[0].names)


def _describe(candidates: Sequence[ArchitectureCandidate]) -> str:
    labels = [x.label for x in candidates]
    text = f"recognised as {labels[0]}"
    if len(labels) == 1:
        return text
    more = f" and {len(labels) - _MAX_SHOWN} more" if len(labels) > _MAX_SHOWN else ""
    return f"{text}; {', '.join(labels[1:_MAX_SHOWN])}{more} have the same names and shapes"


def _describe_by_order(candidates: Sequence[ArchitectureCandidate]) -> str:
    names, counted = _describe(candidates).partition("; ")[::2]
    others = counted.replace("have the same names and shapes", "too")
    return (
        f"{names} by the shapes of its layers in their order, as its names are unknown"
        f"{f' ({others})' if others else ''}; strides, padding and activations are taken to be the same"
    )
