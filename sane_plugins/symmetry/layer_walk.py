"""Walk a network from its outputs to its inputs, so that each layer comes after all that it reads.

The walk reads branch after branch: a norm stays beside its convolution. Of the branches that a sum joins,
the one with more matrices comes first, then shapes decide, then values, by digests that do not depend on the
order of channels. Any other operation reads its inputs in their own order, which is part of what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from graphlib import TopologicalSorter
from hashlib import sha256

import torch

from sane_plugins.symmetry.invariant_content import values_digest
from sane_plugins.weights import Layer, natural_key

_NOTHING = -1  # the depth of what no input of the network reaches


class LayerWalk:
    """The order of connected layers. Raises `CycleError` where a layer feeds itself."""

    def __init__(self, layers: Iterable[Layer], tensors: Mapping[str, torch.Tensor]) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._tensors = tensors
        self._inputs = {
            name: [x for x in layer.inputs if x in self._layers]
            for name, layer in self._layers.items()
        }
        self._sorted = [*TopologicalSorter(self._inputs).static_order()]
        self._read = {name for inputs in self._inputs.values() for name in inputs}
        self._depth: dict[str, int] = {}
        for name in self._sorted:
            self._depth[name] = self._depth_of(name)
        numbers = {name: str(i).encode() for i, name in enumerate(self._layers)}
        self._structure = self._digests(lambda layer: repr(_matrix_shapes(layer)).encode())
        self._origin = self._digests(lambda layer: numbers[layer.name])
        self._inside = self._unreached_by_parent()

    def layers(self) -> list[Layer]:
        """Return all layers in order; those that are not connected come last, by name."""
        found: dict[str, None] = {}
        for root in [*self._roots(), *sorted(self._layers, key=natural_key)]:
            for name in self._visit(root, found):
                found[name] = None
                found.update(dict.fromkeys(self._inside.get(name, ())))
        return [self._layers[name] for name in found]

    def _depth_of(self, name: str) -> int:
        """Return the most matrices on a way from an input of the network to a layer's output."""
        layer = self._layers[name]
        if layer.kind == "input":
            return 0
        depth = max((self._depth[x] for x in self._inputs[name]), default=_NOTHING)
        return depth if depth == _NOTHING else depth + bool(_matrix_shapes(layer))

    def _digests(self, label: Callable[[Layer], bytes]) -> dict[str, bytes]:
        """Return a digest of each layer's value: of the layers with matrices that it depends on, labelled."""
        digests: dict[str, bytes] = {}
        for name in self._sorted:
            layer = self._layers[name]
            parts = sorted({digests[x] for x in self._inputs[name]})
            if _matrix_shapes(layer) or not parts:
                parts.append(label(layer))
            digests[name] = parts[0] if len(parts) == 1 and self._inputs[name] else _hash(parts)
        return digests

    @cached_property
    def _content(self) -> dict[str, bytes]:
        """Return digests of each layer's value by the values of the matrices that it depends on."""
        return self._digests(
            lambda layer: b" ".join(
                sorted(
                    values_digest(self._tensors[p.key]) for p in layer.params if _is_matrix(p.shape)
                )
            )
        )

    def _roots(self) -> Iterator[str]:
        """Yield the outputs, and then the other layers that no layer reads."""
        yield from (name for name, layer in self._layers.items() if layer.kind == "output")
        ends = [x for x in self._layers if self._inputs[x] and x not in self._read]
        yield from sorted(ends, key=lambda x: (-self._depth[x], self._structure[x]))

    def _visit(self, root: str, found: Mapping[str, None]) -> Iterator[str]:
        """Yield what was not found of a layer and all it depends on, each after what it reads."""
        entered = {root}
        pending = [(root, iter(self._in_order(root)))] if root not in found else []
        while pending:
            name, inputs = pending[-1]
            following = next((x for x in inputs if x not in found and x not in entered), None)
            if following is None:
                pending.pop()
                yield name
            else:
                entered.add(following)
                pending.append((following, iter(self._in_order(following))))

    def _in_order(self, name: str) -> list[str]:
        """Return what a layer reads, in the order in which it is visited."""
        inputs = self._inputs[name]
        if self._layers[name].kind != "join" or len(inputs) < 2:
            return inputs
        branches: dict[tuple[int, bytes], list[str]] = {}
        for x in inputs:
            branches.setdefault((-self._depth[x], self._structure[x]), []).append(x)
        ordered = []
        for key in sorted(branches):
            alike = branches[key]
            if len({self._origin[x] for x in alike}) > 1:
                alike = sorted(alike, key=lambda x: self._content[x])
            ordered += alike
        return ordered

    def _unreached_by_parent(self) -> dict[str, list[str]]:
        """Return the layers inside a module that is one step of the network, in natural order."""
        inside: dict[str, list[str]] = {}
        for name in sorted(self._layers, key=natural_key):
            layer = self._layers[name]
            if layer.inputs or name in self._read or layer.kind in ("input", "parameter"):
                continue
            parent = name.rpartition(".")[0]
            while parent and parent not in self._read and not self._inputs.get(parent):
                parent = parent.rpartition(".")[0]
            if parent:
                inside.setdefault(parent, []).append(name)
        return inside


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1


def _matrix_shapes(layer: Layer) -> list[tuple[int, ...]]:
    """Return the shapes of a layer's matrices, rows first; a lone parameter's does not count."""
    if layer.kind == "parameter":
        return []
    return sorted(
        (p.shape[p.axis], *p.shape[: p.axis], *p.shape[p.axis + 1 :])
        for p in layer.params
        if _is_matrix(p.shape)
    )


def _hash(parts: Iterable[bytes]) -> bytes:
    return sha256(b"|".join(parts)).digest()
