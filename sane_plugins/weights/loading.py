"""Load a network's weights into a module: exactly, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.module_tensors.hooked_tensors import renew
from sane_plugins.weights.module_tensors.reading import ModuleTensor, read_module_tensors
from sane_plugins.weights.module_tensors.writing import (
    computes_tensors,
    is_computed,
    write_module_tensor,
)
from sane_plugins.weights.rounding import is_rounded, rounded_to
from sane_plugins.weights.wrapper_names import strip_wrapper_prefixes

_COMPUTED = (
    "pruned entries must be zero, a spectral norm 1, an orthogonal matrix orthogonal",
    "take off the pruning or parametrisation (torch.nn.utils), or give weights that fit it",
)
_IN_MEMORY = ("module", "state_dict")  # containers whose tensors may be a living module's
_STORED = ("no tensor may lie in the memory of another", "give each tensor its own memory")


def load_into(module: nn.Module, graph: WeightGraph) -> None:
    """Write a graph's tensors into a module of the same names; the inverse of `from_module`.

    The module's tensors, read again in evaluation mode, are the graph's, but for the rounding of their type.
    Counters and index tables that the graph does not hold stay as they are. Raises `SourceError`, and leaves
    the module as it was, where a weight is missing, left over or of another shape, where tied names
    get different values, and where the module cannot hold a value: a pruned entry that is not zero, a
    matrix whose spectral norm is not 1 under spectral norm, a number too large for the type.
    """
    _write(module, graph, exactly=True)


def load_nearest(module: nn.Module, graph: WeightGraph) -> None:
    """Write a graph's tensors into a module of the same names, or what comes nearest.

    Pruned entries stay zero, a matrix under spectral norm is divided by its own, and other parametrisations
    make of a value what their inverse does. Raises what `load_into` raises for other reasons.
    """
    _write(module, graph, exactly=False)


def _write(module: nn.Module, graph: WeightGraph, *, exactly: bool) -> None:
    entries = _entries(module, graph)
    _require_fit(entries, graph)
    _require_equal_ties(entries, graph)
    if graph.container in _IN_MEMORY:
        graph = replace(graph, tensors=_read_apart(module, graph))
    backup = _Backup(module, entries)
    try:
        with torch.no_grad():
            if pairs := _pairs_of_one_form(module, graph):
                for own, stored in pairs:
                    own.copy_(stored)
                for entry in entries:
                    renew(entry.module, entry.attribute)
            else:
                for entry in entries:
                    if (key := graph.ties.get(entry.key, entry.key)) in graph.tensors:
                        write_module_tensor(entry, _in_its_type(entry, graph, key))
        _require_values(module, graph, exactly)
    except BaseException:
        backup.restore()
        raise


def _read_apart(module: nn.Module, graph: WeightGraph) -> dict[str, torch.Tensor]:
    """Read all tensors of a graph: they may be the module's own, or be computed from these when read."""
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    tensors = {key: graph.tensors[key] for key in graph.tensors}
    return {
        key: x.clone() if x.untyped_storage().data_ptr() in own else x for key, x in tensors.items()
    }


def _entries(module: nn.Module, graph: WeightGraph) -> Sequence[ModuleTensor]:
    """Return a module's tensors; of a wrapped one by their plain names, where the graph has only those."""
    entries, *_ = read_module_tensors(module)
    names = strip_wrapper_prefixes([entry.key for entry in entries])
    if not names.plain or not names.plain.keys().isdisjoint({*graph.tensors, *graph.ties}):
        return entries
    owners = [names.of(x.key).removesuffix(x.attribute).removesuffix(".") for x in entries]
    return [replace(entry, owner=owner) for entry, owner in zip(entries, owners, strict=True)]


def _pairs_of_one_form(
    module: nn.Module, graph: WeightGraph
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return a module's own tensors, each with that of the graph's source, where both compute from the same.

    What is computed is then the same whatever that is: vectors of spectral norm that did not converge, masks.
    """
    if graph.stored_form is None or not computes_tensors(module):
        return []
    own = {k: x for k, x in module.state_dict().items() if isinstance(x, torch.Tensor)}
    try:
        stored = graph.stored_state()
        if own.keys() != {*stored.tensors, *stored.ties}:
            return []
        values = {key: stored.tensors[stored.ties.get(key, key)] for key in own}
    except SourceError:  # its form cannot hold values that were exchanged; the module's may
        return []
    if any((own[key].shape, own[key].dtype) != (x.shape, x.dtype) for key, x in values.items()):
        return []
    return [(own[key], value) for key, value in values.items()]


class _Backup:
    """A module's tensors and, where code of parametrisations and hooks is run, all its attributes."""

    def __init__(self, module: nn.Module, entries: Sequence[ModuleTensor]) -> None:
        tensors = (*module.parameters(), *module.buffers())
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]
        parts = {id(part): part for x in entries if is_computed(x) for part in _computing_parts(x)}
        self._attributes = [
            (part, dict(vars(part)), dict(part._parameters), dict(part._buffers))
            for part in parts.values()
        ]

    def restore(self) -> None:
        """Give the module back what it had."""
        for part, attributes, parameters, buffers in self._attributes:
            vars(part).clear()
            vars(part).update(attributes)
            part._parameters.clear()
            part._parameters.update(parameters)
            part._buffers.clear()
            part._buffers.update(buffers)
        with torch.no_grad():
            for tensor, values in self._tensors:
                tensor.copy_(values)


def _computing_parts(entry: ModuleTensor) -> list[nn.Module]:
    parts = [entry.module]
    if parametrize.is_parametrized(entry.module, entry.attribute):
        steps: nn.Module = entry.module.parametrizations[entry.attribute]  # type: ignore[index, assignment]
        parts += steps.modules()
    return parts


def _in_its_type(entry: ModuleTensor, graph: WeightGraph, key: str) -> torch.Tensor:
    """Return a graph's tensor in the module's type; raise `SourceError` where it does not hold its values."""
    tensor, dtype = graph.tensors[key].detach().to(entry.value.device), entry.value.dtype
    rounded = rounded_to(tensor, dtype)
    if rounded is None:
        raise _mismatch(
            graph,
            entry.key,
            f"some of its values are beyond {str(dtype).removeprefix('torch.')}",
            "the module must hold them",
            "give the module a wider type, such as module.float()",
        )
    return rounded


def _require_values(module: nn.Module, graph: WeightGraph, exactly: bool) -> None:
    """Raise `SourceError` unless a forward pass in evaluation uses the graph's values."""
    for entry in _entries(module, graph):
        key = graph.ties.get(entry.key, entry.key)
        if key not in graph.tensors:
            continue
        asked, computed = _in_its_type(entry, graph, key), is_computed(entry)
        if computed and not exactly:
            continue
        if is_rounded(entry.value, asked) if computed else _same(entry.value, asked):
            continue
        needed, way_out = _COMPUTED if computed else _STORED
        found = "the module computes with other values than were asked for"
        raise _mismatch(graph, entry.key, found, needed, way_out)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if torch.equal(one, other):
        return True
    return bool(((one == other) | (one != one) & (other != other)).all())  # NaN


def _require_fit(entries: Sequence[ModuleTensor], graph: WeightGraph) -> None:
    """Raise `SourceError` unless the graph's weights have the names and shapes of the module's."""
    shapes = {param.key: param.shape for param in graph.params}
    unused = dict(shapes)
    for entry in entries:
        key = graph.ties.get(entry.key, entry.key)
        shape = shapes.get(key)
        if not entry.writable:
            raise _mismatch(
                graph,
                entry.key,
                "the module keeps it quantised, or makes it when it is saved",
                "a value that is loaded is kept as it is",
                "load the weights into the module before it is quantised",
            )
        if shape is None and key in graph.tensors:
            tensor = graph.tensors[key]
            shape = tuple(tensor.shape)
            if entry.value.is_floating_point() and not tensor.is_floating_point():
                raise _mismatch(
                    graph,
                    entry.key,
                    f"it holds {str(tensor.dtype).removeprefix('torch.')} values, which are no weights",
                    "the module needs numbers in floating point",
                    "give weights that were dequantised",
                )
        unused.pop(key, None)
        needed = tuple(entry.value.shape)
        if entry.value.is_meta:
            raise _mismatch(
                graph,
                entry.key,
                "the module is on the meta device",
                "it needs memory to be written",
                "call module.to_empty(device='cpu') first",
            )
        if shape != needed and (shape is not None or entry.value.is_floating_point()):
            found = "the tensor is missing" if shape is None else f"its shape is {shape}"
            raise _mismatch(graph, entry.key, found, f"the module needs one of shape {needed}")
        if _is_expanded(entry.value):
            raise _mismatch(
                graph,
                entry.key,
                "several of its entries are one number in memory",
                "each needs a place of its own",
                "give the module a copy of the tensor (clone)",
            )
    for key in unused:
        raise _mismatch(graph, key, "the module has no such tensor", "no weight may be left over")


def _is_expanded(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _require_equal_ties(entries: Sequence[ModuleTensor], graph: WeightGraph) -> None:
    """Raise `SourceError` where names that the module ties would get different values."""
    first_keys: dict[tuple[object, ...], str] = {}
    for entry in entries:
        key = graph.ties.get(entry.key, entry.key)
        other = first_keys.setdefault(entry.identity, key)
        if other == key or not entry.value.is_floating_point():
            continue
        if not torch.equal(graph.tensors[key], graph.tensors[other]):
            raise _mismatch(
                graph,
                entry.key,
                f"its values are not those of '{other}'",
                "the module keeps both in one tensor",
            )


def _mismatch(
    graph: WeightGraph,
    key: str,
    found: str,
    needed: str,
    way_out: str = "check that the weights belong to this module",
) -> SourceError:
    return SourceError(f"{graph.source}, '{key}'", found, needed, way_out)
