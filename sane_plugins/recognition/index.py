"""The shipped index of architectures that others' libraries build, by what they are known by.

`tools/release/architecture_index.py` writes it: JSON, compressed.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

from sane_plugins.recognition.signature import Counts, Length, Shapes, Signature, names_digest
from sane_plugins.recognition.topology import LayerKinds
from sane_plugins.weights import Kind

_FILE = "architectures.json.xz"


@dataclass(frozen=True)
class IndexedArchitecture:
    """An architecture of a library: the name that a host builds, and what is known without building it.

    `topology` is a digest that architectures of the same names and shapes share whose channels may change
    places in the same way. `order` is what it is known by without its names (`by_order`), None where shapes
    cannot tell it.
    """

    source: str
    signature: Signature
    kinds_text: str
    topology: str
    order: Signature | None = None

    @property
    def kinds(self) -> LayerKinds:
        """Return the kind and groups of each layer with weights, by the layers' names in order."""
        pairs = (part.partition(":") for part in self.kinds_text.split())
        return [(cast("Kind", kind), int(groups or 1)) for kind, _, groups in pairs]


def kinds_text(kinds: LayerKinds) -> str:
    """Return kinds as the index holds them: `conv norm conv:32 norm`, where 32 is a number of groups."""
    return " ".join(f"{kind}:{groups}" if groups > 1 else kind for kind, groups in kinds)


def find_indexed(shapes: Shapes) -> Iterator[tuple[IndexedArchitecture, Counts]]:
    """Yield the architectures that have these shapes, and for which counts."""
    stored = _read_index()
    for row in stored.rows.get(names_digest(shapes), ()):
        architecture = stored.architecture(row)
        counts = architecture.signature.counts(shapes)
        if counts is not None:
            yield architecture, counts


def find_ordered(shapes: Shapes) -> Iterator[tuple[IndexedArchitecture, Counts]]:
    """Yield the architectures that have these shapes, by `anonymous_names`, and for which counts."""
    stored = _read_index()
    for row in stored.ordered.get(names_digest(shapes), ()):
        architecture = stored.architecture(row)
        counts = architecture.order.counts(shapes) if architecture.order else None
        if counts is not None:
            yield architecture, counts


def indexed_architectures() -> Iterator[IndexedArchitecture]:
    """Yield all architectures of the index."""
    stored = _read_index()
    for found in stored.rows.values():
        yield from map(stored.architecture, found)


@dataclass(frozen=True)
class _StoredIndex:
    """The rows of the index by the digest of their names, and the texts of kinds that they number.

    `ordered` are those that are known without their names, by the digest of the anonymous ones.
    """

    rows: Mapping[str, Sequence[Any]]
    ordered: Mapping[str, Sequence[Any]]
    kinds: Sequence[str]

    def architecture(self, row: Any) -> IndexedArchitecture:
        """Return what a row holds."""
        source, known_by, kinds, topology, order = row
        return IndexedArchitecture(
            source, _signature(known_by), self.kinds[kinds], topology, order and _signature(order)
        )


@cache
def _read_index() -> _StoredIndex:
    stored = (files("sane_plugins") / "data" / _FILE).read_bytes()
    content = json.loads(lzma.decompress(stored))
    rows: dict[str, list[Any]] = {}
    ordered: dict[str, list[Any]] = {}
    for row in content["architectures"]:
        _, (names, *_), *_, order = row
        rows.setdefault(names, []).append(row)
        if order:
            ordered.setdefault(order[0], []).append(row)
    return _StoredIndex(rows, ordered, content["kinds"])


def _signature(stored: Any) -> Signature:
    names, shapes, lengths = stored
    return Signature(names, shapes, tuple(Length(*x) for x in lengths))


def _stored(signature: Signature | None) -> Any:
    return signature and (signature.names, signature.shapes, [*map(astuple, signature.lengths)])


def pack_index(architectures: Iterable[IndexedArchitecture]) -> bytes:
    """Return the content of the index's file."""
    architectures = [*architectures]
    kinds = sorted({x.kinds_text for x in architectures})
    rows = [
        (
            x.source,
            _stored(x.signature),
            kinds.index(x.kinds_text),
            x.topology,
            _stored(x.order),
        )
        for x in architectures
    ]
    text = json.dumps({"kinds": kinds, "architectures": rows}, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9)
