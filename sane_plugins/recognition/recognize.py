"""Recognise the architecture of a network that says nothing but its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from torch import nn

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.formats import declared_architecture
from sane_plugins.recognition.candidates import ArchitectureCandidate, BuildNamed, find_candidates
from sane_plugins.recognition.meta_build import build_on_meta
from sane_plugins.recognition.signature import Signature, float_shapes
from sane_plugins.recognition.topology import with_kinds, with_layers_of
from sane_plugins.weights import Kind, WeightGraph, from_module

_MAX_SHOWN = 5  # names of a note
_MAX_KEPT = 64  # architectures whose connections are kept
_LOST = "how its layers are connected is not known here"
_UNKNOWN: tuple[Kind, int] = ("unknown", 1)


class Recognizer:
    """Recognises networks, and gives them the layers of what a host builds by their names."""

    def __init__(self, build_named: BuildNamed) -> None:
        self._build_named = build_named
        self._networks: dict[str, WeightGraph] = {}
        self._lock = Lock()  # of the networks: threads share a host

    def recognize(self, graph: WeightGraph) -> WeightGraph:
        """Return a network with kinds, connections and order of the architecture that it is of.

        Where several have its names and shapes, what they agree on is used. The same graph comes back where
        there is none.
        """
        candidates = _as_declared(graph, find_candidates(graph))
        if not candidates:
            return graph
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

    def _network(self, candidate: ArchitectureCandidate) -> WeightGraph:
        """Return an architecture's network, without values. Raises `SaneError` where it cannot be built."""
        with self._lock:
            network = self._networks.get(candidate.name)
        if network is None:
            module = build_on_meta(lambda: candidate.build(self._build_named))
            _require_indexed(candidate, module)
            network = from_module(module, candidate.name)
            with self._lock:
                self._networks[candidate.name] = network
                for name in [*self._networks][:-_MAX_KEPT]:
                    del self._networks[name]
        return network


def likely_candidates(graph: WeightGraph) -> list[ArchitectureCandidate]:
    """Return the architectures that a network may be of; none where they are connected in several ways."""
    candidates = _as_declared(graph, find_candidates(graph))
    return candidates if _are_connected_alike(candidates) else []


def _are_connected_alike(candidates: Sequence[ArchitectureCandidate]) -> bool:
    return len({x.indexed.topology for x in candidates if x.indexed}) <= 1


def _as_declared(
    graph: WeightGraph, candidates: list[ArchitectureCandidate]
) -> list[ArchitectureCandidate]:
    """Return the one that `config.json` beside a file names; all where it names none of them."""
    declared = declared_architecture(graph.source) if len(candidates) > 1 else None
    name = f"timm:{(declared or '').partition('.')[0]}"
    return [x for x in candidates if x.name.partition(",")[0] == name] or candidates


def _require_indexed(candidate: ArchitectureCandidate, module: nn.Module) -> None:
    """Raise `SourceError` where what is installed builds another network than that of the index."""
    if candidate.indexed is None:
        return
    expected = candidate.indexed.signature
    if Signature.of(float_shapes(module), expected.lengths) != expected:
        raise SourceError(
            candidate.name,
            "what is installed builds another network of that name",
            "names and shapes of all weights must fit",
            "install another version of the library",
        )


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
