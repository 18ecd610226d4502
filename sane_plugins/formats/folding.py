"""What torch stores in place of a tensor in use, by names and shapes: pruned and normed tensors.

The tensors in use are computed when they are read. Of other parametrisations a file does not say what they
compute: their tensors are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import source_errors
from sane_plugins.weights import (
    ComputedTensor,
    ComputedTensors,
    Pruned,
    SpectrallyNormed,
    StoredState,
    WeightGraph,
    WeightNormed,
    is_rounded,
    nncf_masked,
    stored_ties,
)

Described = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
_COMPUTABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_PARAMETRIZED = re.compile(r"(?P<owner>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)")
_UNKNOWN = "original of a parametrisation: a file does not say what it computes"


@dataclass(frozen=True)
class Folded:
    """The tensors in use, what they are computed from, and the parts of parametrisations that are not known.

    `unread` gives the number of weights behind a part, and the reason.
    """

    tensors: Mapping[str, torch.Tensor]
    described: Described
    computed: ComputedTensors
    unread: Mapping[str, tuple[int, str]]

    def reasons(self) -> Iterator[tuple[str, str]]:
        """Yield each stored tensor that is part of another, and says so."""
        for part in self.computed.by_name.values():
            for source in part.sources:
                if source != part.name:
                    yield (
                        source,
                        f"part of a {part.adjective} tensor, folded into the tensor in use",
                    )

    def main_source(self, key: str) -> str:
        """Return the stored tensor that has a tensor's shape."""
        return self.computed.main_source(key)

    def used_ties(self, ties: Mapping[str, str]) -> dict[str, str]:
        """Return the ties between tensors in use, given those between stored ones."""
        used = {}
        for alias, owner in ties.items():
            name, other = self.computed.result(alias), self.computed.result(owner)
            pairs = [[ties.get(x, x) for x in self.computed.stored_names(y)] for y in (name, other)]
            if name != other and pairs[0] == pairs[1]:
                used[name] = other
        return used

    def stored_form(self, stored: Mapping[str, torch.Tensor]) -> FileState | None:
        """Return what makes the file's own tensors of a graph; None where these are those in use."""
        return (
            FileState(stored, tuple(self.computed.by_name.values()))
            if self.computed.by_name
            else None
        )


@dataclass(frozen=True, eq=False)
class FileState:
    """Makes the stored tensors of a file, given a graph of it; those that give what is in use stay."""

    stored: Mapping[str, torch.Tensor]
    computed: tuple[ComputedTensor, ...]

    def __call__(self, graph: WeightGraph) -> StoredState:
        """Return the tensors by their names in the file."""
        computed = ComputedTensors(self.computed, self.stored.__getitem__)
        used = [x.name for x in self.computed if computed.result(x.name) == x.name]
        return StoredState(
            tensors=_StoredTensors(graph, self.stored, computed),
            ties=stored_ties(computed, graph.ties),
            main_names={name: computed.main_source(name) for name in used},
        )


class _StoredTensors(Mapping[str, torch.Tensor]):
    """Tensors by their names in a file, made on access."""

    def __init__(
        self, graph: WeightGraph, stored: Mapping[str, torch.Tensor], computed: ComputedTensors
    ) -> None:
        self._graph, self._stored, self._computed = graph, stored, computed

    def __getitem__(self, key: str) -> torch.Tensor:
        name = self._computed.result(key)
        if name == key:
            return self._graph.tensors[self._graph.ties.get(key, key)]
        asked = self._graph.tensors[self._graph.ties.get(name, name)]
        values = self._computed.stored_values(name, asked)
        written = ComputedTensors(self._computed.by_name.values(), values.__getitem__).value(name)
        if not is_rounded(written, asked):
            raise SourceError(
                f"{self._graph.source}, '{name}'",
                "its new values do not fit the form that it is stored in",
                "pruned entries must be zero, and a spectral norm 1",
                "load them into a module without pruning or parametrisation, and write that",
            )
        return values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class _UsedTensors(Mapping[str, torch.Tensor]):
    """The tensors in use: computed ones stand where their first source stood."""

    def __init__(
        self,
        source: str,
        stored: Mapping[str, torch.Tensor],
        computed: ComputedTensors,
        keys: Iterable[str],
    ) -> None:
        self._source, self._stored, self._computed = source, stored, computed
        self._keys = dict.fromkeys(keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys  # without computing it

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._keys:
            raise KeyError(key)
        if key not in self._computed.by_name:
            return self._stored[key]
        with source_errors(f"{self._source}, '{key}'"):
            return self._computed.value(key)

    def __reduce__(self) -> tuple[object, ...]:
        return _used, (
            self._source,
            self._stored,
            [*self._computed.by_name.values()],
            [*self._keys],
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _used(
    source: str, stored: Mapping[str, torch.Tensor], parts: list[ComputedTensor], keys: list[str]
) -> _UsedTensors:
    return _UsedTensors(source, stored, ComputedTensors(parts, stored.__getitem__), keys)


def fold(
    tensors: Mapping[str, torch.Tensor], described: Described, axes: Mapping[str, int], source: str
) -> Folded:
    """Find what a file stores in place of tensors in use; nothing is read."""
    parts = {x.name: x for x in _pruned(described)}
    described = _replaced(described, parts)
    normed = {x.name: x for x in (*_weight_normed(described), *_spectral(described, axes))}
    described = _replaced(described, normed)
    parts |= normed
    unread = dict(_unknown(described))
    if not parts and not unread:
        return Folded(tensors, described, ComputedTensors((), tensors.__getitem__), {})
    described = {key: x for key, x in described.items() if key not in unread}
    computed = ComputedTensors(parts.values(), tensors.__getitem__)
    rest = [key for key in tensors if key not in described and computed.result(key) == key]
    used = _UsedTensors(source, tensors, computed, [*described, *rest])
    return Folded(used, described, computed, unread)


def _replaced(described: Described, parts: Mapping[str, ComputedTensor]) -> Described:
    """Return shapes and types with each computed tensor where its first source stood."""
    users = {source: part for part in parts.values() for source in part.sources}
    replaced: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for key, description in described.items():
        if part := users.get(key):
            shape, dtype = described[part.main_source]
            for source in part.sources:
                dtype = torch.promote_types(dtype, described[source][1])
            replaced.setdefault(part.name, (shape, dtype))
        else:
            replaced[key] = description
    return replaced


def _pruned(described: Described) -> Iterator[ComputedTensor]:
    for key in described:
        name = key.removesuffix("_orig")
        mask = described.get(f"{name}_mask")
        if name != key and name not in described and mask and mask[0] == described[key][0]:
            yield Pruned(name, (key, f"{name}_mask"))
    yield from nncf_masked({key: shape for key, (shape, _) in described.items()})


def _weight_normed(described: Described) -> Iterator[ComputedTensor]:
    groups = _parametrized(described)
    for key in described:
        found = _parametrization(key)
        if found and found["part"] == "original0":
            prefix = key.removesuffix("0")
            sources, name = (key, f"{prefix}1"), found["owner"] + found["name"]
            if len(groups[found["owner"], found["name"]]) > 2:
                continue
        elif key.endswith("_g"):
            name = key.removesuffix("_g")
            sources = (key, f"{name}_v")
        else:
            continue
        if name in described or sources[1] not in described:
            continue
        axis = _length_axis(*(described[source] for source in sources))
        if axis is not None:
            yield WeightNormed(name, sources, axis)


def _length_axis(
    lengths: tuple[tuple[int, ...], torch.dtype], directions: tuple[tuple[int, ...], torch.dtype]
) -> int | None:
    """Return the axis along which lengths lie, -1 for a single one, None where they fit none."""
    (shape, dtype), (whole, other_dtype) = lengths, directions
    if dtype != other_dtype or dtype not in _COMPUTABLE or len(whole) < 2:
        return None
    if shape == ():
        return -1
    for axis, size in enumerate(whole):
        if shape == tuple(size if i == axis else 1 for i in range(len(whole))):
            return axis
    return None


def _spectral(described: Described, axes: Mapping[str, int]) -> Iterator[ComputedTensor]:
    groups = _parametrized(described)
    for key in described:
        found = _parametrization(key)
        if found and found["part"] == "original":
            prefix = key.removesuffix("original")
            sources, name = (key, f"{prefix}0._u", f"{prefix}0._v"), found["owner"] + found["name"]
            if {*groups[found["owner"], found["name"]]} != {*sources}:
                continue
        elif key.endswith("_orig"):
            name = key.removesuffix("_orig")
            sources = (key, f"{name}_u", f"{name}_v")
        else:
            continue
        if name in described or not all(source in described for source in sources):
            continue
        shapes, dtypes = zip(*(described[source] for source in sources), strict=True)
        rows = _row_axes(*shapes)
        if len({*dtypes}) != 1 or dtypes[0] not in _COMPUTABLE or not rows:
            continue
        told = axes.get(key)
        if told in rows:
            rows = (told,)
        # Of a square matrix, torch takes the first axis; of a kernel it depends on the class of the layer.
        yield SpectrallyNormed(name, sources, rows[:1] if len(shapes[0]) == 2 else rows)


def _row_axes(
    shape: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the axes, first or second, along which rows with these singular vectors may lie."""
    if len(shape) < 2 or len(left) != 1 or len(right) != 1:
        return ()
    size = prod(shape)
    return tuple(x for x in (0, 1) if shape[x] == left[0] and left[0] * right[0] == size)


def _parametrization(key: str) -> re.Match[str] | None:
    # Names may be long and many, and the expression goes through all of one.
    return _PARAMETRIZED.fullmatch(key) if "parametrizations." in key else None


def _parametrized(described: Described) -> dict[tuple[str, str], list[str]]:
    """Return the keys of each parametrised tensor, by its owner's prefix and its name."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key in described:
        if found := _parametrization(key):
            groups.setdefault((found["owner"], found["name"]), []).append(key)
    return groups


def _unknown(described: Described) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield what is left of parametrisations: the largest original counts as the weights behind them."""
    for (owner, name), keys in _parametrized(described).items():
        prefix = f"{owner}parametrizations.{name}.original"
        sizes = {key: prod(described[key][0]) for key in keys if key.startswith(prefix)}
        largest = max(sizes, key=sizes.__getitem__, default=None)
        yield from ((key, (sizes[key] if key == largest else 0, _UNKNOWN)) for key in keys)
