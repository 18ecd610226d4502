"""Match files against what functions build that the user names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from sane_plugins.errors import SaneError, SourceError
from sane_plugins.recognition.candidates import (
    ArchitectureCandidate,
    in_file_order,
    plain_names,
    stored_shapes,
)
from sane_plugins.recognition.layer_order import names_by_place
from sane_plugins.recognition.meta_build import build_on_meta
from sane_plugins.recognition.signature import Counts, Shapes, float_shapes
from sane_plugins.recognition.topology import Names, with_layers_of, with_own_layer_names
from sane_plugins.runtime import drawing_from
from sane_plugins.weights import WeightGraph, from_module, layer_name, shape_text

_CONNECTED = ("module", "onnx")  # containers that say themselves how layers are connected
_TOLD = 3  # differences in an error


@dataclass(frozen=True)
class NamedBuilder:
    """What a user names to say which network a file is of: it builds one for a number of classes.

    Without a number it builds its default. Raises `SaneError` where it cannot.
    """

    name: str
    build: Callable[[int | None], nn.Module]

    @cached_property
    def network(self) -> WeightGraph:
        """Return the network that it builds, without values where that is possible."""
        return from_module(self.module(None), self.name)

    @cached_property
    def tensor_names(self) -> frozenset[str]:
        """Return the names of the network's tensors, without tracing it."""
        return frozenset(float_shapes(self.module(None)))

    @cached_property
    def per_class(self) -> Mapping[tuple[str, int], tuple[int, int]]:
        """Return what each length, by tensor and axis, grows by with every class, and what it begins at."""
        two, three = (float_shapes(self.module(count)) for count in (2, 3))
        return {
            (key, axis): (more - length, length - 2 * (more - length))
            for key, shape in two.items()
            for axis, (length, more) in enumerate(zip(shape, three.get(key, shape), strict=False))
            if more != length
        }

    def module(self, classes: int | None) -> nn.Module:
        """Return what it builds, without values where that is possible."""
        try:
            return build_on_meta(lambda: self.build(classes))
        except SaneError:  # some need values; its own error is told where these do not help
            from torch import Generator

            with drawing_from(Generator()):
                return self.build(classes)


def with_layers_built(graph: WeightGraph, builders: Sequence[NamedBuilder]) -> WeightGraph:
    """Return a file's graph with the layers of the first builder's network that has its names and shapes.

    Class count and input channels may differ. A network that says itself how its layers are connected is
    returned as it is. Raises `SourceError` where no builder fits.
    """
    if graph.container in _CONNECTED:
        return graph
    told = []
    for builder in builders:
        names = _matching_names(graph, builder)
        if isinstance(names, str):
            told.append(f"what {builder.name} builds {names}")
        elif (connected := with_layers_of(graph, builder.network, names)) is not None:
            note = f"recognised as what {builder.name} builds"
            if names not in plain_names(stored_shapes(graph)):
                connected = with_own_layer_names(connected, names)
                note += " by the order of its layers, as its names are others"
            notes = (note, *connected.notes)
            return replace(connected, recognized=(builder.name,), notes=notes)
        else:
            told.append(f"{builder.name} ties tensors that differ in it")
    raise SourceError(
        graph.source,
        "; ".join(told),
        "the factory must build the network that was saved",
        "name the right function with --factory",
    )


def find_published(
    graph: WeightGraph, builders: Sequence[NamedBuilder]
) -> list[ArchitectureCandidate]:
    """Return those of the builders' networks that a file is of, up to the number of classes."""
    namings = [{*names.values()} for names in plain_names(stored_shapes(graph))]
    found = []
    for builder in builders:
        try:
            fit = fit_builder(graph, builder) if builder.tensor_names in namings else None
        except SaneError:  # a plugin's builder may be broken; its host has recorded that
            continue
        if fit is not None:
            names, classes = fit
            candidate = ArchitectureCandidate(
                names=names, counts=Counts(classes), published=builder.name
            )
            found.append(candidate)
    return found


def fit_builder(graph: WeightGraph, builder: NamedBuilder) -> tuple[Names, int | None] | None:
    """Return the builder's names of a file's tensors, and the class count for which it builds that network.

    None for the count where it is the builder's default; None altogether where it builds another network, or
    one of other input channels.
    """
    stored, names = stored_shapes(graph), _matching_names(graph, builder)
    if isinstance(names, str):
        return None
    shapes, built = {names[key]: x for key, x in stored.items()}, stored_shapes(builder.network)
    if shapes == built:
        return names, None
    for (key, axis), (more, start) in builder.per_class.items():
        count = (shapes[key][axis] - start) // more
        has_fit = stored_shapes(from_module(builder.module(count), builder.name)) == shapes
        return (names, count) if has_fit else None
    return None


def _matching_names(graph: WeightGraph, builder: NamedBuilder) -> Names | str:
    """Return the builder's names of a file's tensors, or what its network differs in.

    Where the names are others, its layers may come in the same order.
    """
    stored, built = stored_shapes(graph), stored_shapes(builder.network)
    names = min(plain_names(stored), key=lambda names: len({*names.values()} ^ built.keys()))
    shapes = {names[key]: shape for key, shape in stored.items()}
    if differing := [*_differing(shapes, built, builder)]:
        in_order = names_by_place(in_file_order(graph), in_file_order(builder.network))
        if in_order and shapes.keys() != built.keys():
            moved = {in_order[key]: shape for key, shape in stored.items()}
            if not any(_differing(moved, built, builder)):
                return in_order
        more = f" and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
        return f"differs in {', '.join(differing[:_TOLD])}{more}"
    return names


def _differing(shapes: Shapes, built: Shapes, builder: NamedBuilder) -> Iterator[str]:
    """Yield what differs in more than the numbers of classes and of input channels."""
    for key in dict.fromkeys([*built, *shapes]):
        if key not in shapes:
            yield f"'{key}', which the file lacks"
        elif key not in built:
            yield f"'{key}', which the file has"
    changed = {key for key in built if built[key] != shapes.get(key)}
    if not changed or built.keys() != shapes.keys():
        return
    lengths = {
        (key, axis): (built[key][axis], shapes[key][axis])
        for key in changed
        if len(built[key]) == len(shapes[key])
        for axis in range(len(built[key]))
        if built[key][axis] != shapes[key][axis]
    }
    allowed = {*_by_channels(lengths, built)}
    rest = {place: pair for place, pair in lengths.items() if place not in allowed}
    allowed |= {*_by_classes(rest, shapes, builder)}
    for key in built:
        axes = [axis for other, axis in lengths if other == key]
        if key in changed and not (axes and all((key, axis) in allowed for axis in axes)):
            found, needed = (shape_text(x[key]) for x in (shapes, built))
            yield f"'{key}', {found} in the file and {needed} in the network"


def _by_channels(
    lengths: Mapping[tuple[str, int], tuple[int, int]], built: Shapes
) -> Iterator[tuple[str, int]]:
    """Yield the place in a kernel that has another number of input channels, if it is one kernel's."""
    places = [(key, axis) for key, axis in lengths if axis == 1 and len(built[key]) > 2]
    if len(places) == 1:
        yield places[0]


def _by_classes(
    lengths: Mapping[tuple[str, int], tuple[int, int]], shapes: Shapes, builder: NamedBuilder
) -> Iterator[tuple[str, int]]:
    """Yield the places whose lengths are right for one other number of classes.

    Of a function that takes no number, those are the first axes of one layer's tensors.
    """
    if builder.per_class:
        counts = {
            divmod(shapes[key][axis] - start, more) if len(shapes[key]) > axis else (0, 0)
            for (key, axis), (more, start) in builder.per_class.items()
        }
        if len(counts) == 1 and all(count > 0 and not rest for count, rest in counts):
            yield from (place for place in lengths if place in builder.per_class)
    elif len({layer_name(key) for key, _ in lengths}) == 1 and len({*lengths.values()}) == 1:
        (name,), ((old, _),) = {layer_name(key) for key, _ in lengths}, {*lengths.values()}
        heads = {
            (key, 0)
            for key, shape in stored_shapes(builder.network).items()
            if layer_name(key) == name and shape[:1] == (old,)
        }
        yield from heads if heads == lengths.keys() else ()
