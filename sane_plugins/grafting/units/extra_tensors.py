"""Tensors that belong to no unit, such as a gain, or a norm on a way without convolution: where each stands.

The method: docs/explanation/sane.md, section 15.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from sane_plugins.grafting.connections import Connections
from sane_plugins.grafting.units.unit import ExtraTensor, Unit
from sane_plugins.weights import Param, WeightGraph, layer_name


def extra_tensors(
    graph: WeightGraph,
    units: Sequence[Unit],
    connections: Connections | None,
    reach: Mapping[str, int],
) -> Iterator[ExtraTensor]:
    """Yield the tensors of no unit. Each stands behind the last unit on whose output its reader depends.

    Where that is not known, behind the last unit whose name begins as its own.
    """
    taken = {key for unit in units for key in unit.keys}
    counts: Counter[tuple[object, ...]] = Counter()
    for param in graph.params:
        if param.key in taken:
            continue
        reader = connections.reader_of(param.key) if connections else None
        if reader is None:
            behind = _nearest(param, units)
        else:
            number = reach[reader].bit_length() - 1
            behind = units[number].name if number >= 0 else None
        place = (behind, param.role, len(param.shape))
        yield ExtraTensor(param=param, behind=behind, index=counts[place])
        counts[place] += 1


def _nearest(param: Param, units: Sequence[Unit]) -> str | None:
    owner = layer_name(param.key).split(".")
    shared = [_shared(owner, unit.name.split(".")) for unit in units]
    most = max(shared, default=0)
    return next((u.name for u, n in zip(units[::-1], shared[::-1], strict=True) if n == most), None)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return in how many parts two names agree from their beginning."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
