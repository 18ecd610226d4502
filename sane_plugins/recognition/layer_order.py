"""What a network is known by without its names: the order of its layers, their shapes, and its modules.

torch writes tensors in the order in which modules were made. What two libraries call a network's layers
differs; how these are ordered and grouped often does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sane_plugins.recognition.signature import Shapes, Signature
from sane_plugins.recognition.topology import Names
from sane_plugins.weights import layer_name

LEAST_TENSORS = 32  # of a network that shapes alone may identify
Span = tuple[int, int]


def anonymous_names(keys: Iterable[str]) -> Names:
    """Return names that tell the place of each layer instead of what it is called: `00003.weight`."""
    places: dict[str, int] = {}
    return {
        key: f"{places.setdefault(layer_name(key), len(places)):05d}.{key.rpartition('.')[2]}"
        for key in keys
    }


def anonymous_shapes(shapes: Shapes) -> Shapes | None:
    """Return ordered shapes under anonymous names; None for a network that shapes cannot identify."""
    names = anonymous_names(shapes)
    if len(shapes) < LEAST_TENSORS or len({*names.values()}) < len(shapes):
        return None
    return {names[key]: shape for key, shape in shapes.items()}


def ordered_signature(signature: Signature, shapes: Shapes) -> Signature | None:
    """Return what an architecture is known by without its names; `shapes` are its own, in their order."""
    anonymous = anonymous_shapes(shapes)
    if anonymous is None:
        return None
    names = dict(zip(shapes, anonymous, strict=True))
    plain, places = sorted(shapes), {name: i for i, name in enumerate(sorted(anonymous))}
    lengths = [replace(x, tensor=places[names[plain[x.tensor]]]) for x in signature.lengths]
    return Signature.of(anonymous, lengths)


def names_by_place(keys: Iterable[str], built: Iterable[str]) -> Names | None:
    """Return a built network's names by those of a file, both in their order.

    None where a layer's tensors have other attributes (`weight`, `running_mean`), and where a module of one
    overlaps one of the other in part: a block that begins with its norm is no block that ends with one.
    """
    ours, theirs = anonymous_names(keys), anonymous_names(built)
    by_place = {place: name for name, place in theirs.items()}
    if by_place.keys() != {*ours.values()}:
        return None
    names = {key: by_place[place] for key, place in ours.items()}
    first, second = _modules([*names]), _modules([*names.values()])
    return names if first and second and _are_nested({*first, *second}) else None


def _modules(keys: Sequence[str]) -> set[Span] | None:
    """Return the (first, past the last) places of each module's tensors; None where some lie elsewhere."""
    spans: dict[str, Span] = {}
    counts: dict[str, int] = {}
    for place, key in enumerate(keys):
        for prefix in _prefixes(key):
            start, _ = spans.get(prefix, (place, place))
            spans[prefix] = start, place + 1
            counts[prefix] = counts.get(prefix, 0) + 1
    if any(end - start != counts[prefix] for prefix, (start, end) in spans.items()):
        return None
    return {*spans.values()}


def _prefixes(key: str) -> Iterator[str]:
    while key := key.rpartition(".")[0]:
        yield key


def _are_nested(spans: Iterable[Span]) -> bool:
    """Return whether of any two spans one holds the other, or they have nothing in common."""
    around: list[int] = []  # ends of the spans that are still open
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        while around and around[-1] <= start:
            around.pop()
        if around and end > around[-1]:
            return False
        around.append(end)
    return True
