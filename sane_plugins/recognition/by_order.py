"""Match files whose names are nobody's with the known architectures whose layers come in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from sane_plugins.errors import SaneError
from sane_plugins.recognition.candidates import (
    ArchitectureCandidate,
    BuildNamed,
    in_file_order,
)
from sane_plugins.recognition.index import IndexedArchitecture, find_ordered
from sane_plugins.recognition.layer_order import anonymous_shapes, names_by_place
from sane_plugins.recognition.meta_build import build_on_meta
from sane_plugins.recognition.signature import Counts, Shapes, float_shapes
from sane_plugins.recognition.topology import Names
from sane_plugins.weights import WeightGraph

Indexed = tuple[IndexedArchitecture, Counts]


def find_by_order(graph: WeightGraph, build_named: BuildNamed) -> list[ArchitectureCandidate]:
    """Return the architectures whose layers have a file's shapes in its order, and its modules.

    One is built for its names, by `build_named`; those that cannot be built are left out.
    """
    shapes = in_file_order(graph)
    anonymous = None if graph.missed else anonymous_shapes(shapes)
    if anonymous is None:
        return []
    by_names: dict[str, list[Indexed]] = {}
    for architecture, counts in find_ordered(anonymous):
        by_names.setdefault(architecture.signature.names, []).append((architecture, counts))
    return [x for same in by_names.values() for x in _candidates(shapes, same, build_named)]


def _candidates(
    shapes: Shapes, same: Sequence[Indexed], build_named: BuildNamed
) -> Iterator[ArchitectureCandidate]:
    """Yield candidates for architectures that share their names."""
    names = _names(shapes, same, build_named)
    if names is not None:
        for architecture, counts in same:
            yield ArchitectureCandidate(
                names=names, counts=counts, indexed=architecture, is_by_order=True
            )


def _names(shapes: Shapes, same: Sequence[Indexed], build_named: BuildNamed) -> Names | None:
    for architecture, counts in same:
        candidate = ArchitectureCandidate(names={}, counts=counts, indexed=architecture)
        try:
            built = float_shapes(build_on_meta(partial(candidate.build, build_named)))
            candidate.require_indexed(built)
        except SaneError:  # the library may be missing, or of another version
            continue
        return names_by_place(shapes, built)
    return None
