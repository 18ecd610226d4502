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

from sane_plugins.symmetry.invariant_content import squared_norms, values_digest
from sane_plugins.weights import Layer, Param, natural_key

_NOTHING = -1  # the depth of what no input of the network reaches
_NOTHING_READ = b""  # the digest of what depends on no weights


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
        self._structure = self._digests(lambda layer: repr(_shapes(layer)).encode())
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
        is_deeper = depth != _NOTHING and bool(_weights(layer))
        return depth + is_deeper

    def _digests(self, label: Callable[[Layer], bytes]) -> dict[str, bytes]:
        """Return a digest of each layer's value: of the weights that it depends on, by labels."""
        digests: dict[str, bytes] = {}
        for name in self._sorted:
            layer = self._layers[name]
            parts = sorted({digests[x] for x in self._inputs[name]} - {_NOTHING_READ})
            if layer.kind == "input" or _shapes(layer):
                parts.append(label(layer))
                digests[name] = sha256(b"|".join(parts)).digest()
            elif len(parts) > 1:
                digests[name] = sha256(b"|".join(parts)).digest()
            else:
                digests[name] = parts[0] if parts else _NOTHING_READ
        return digests

    @cached_property
    def _content(self) -> dict[str, bytes]:
        """Return digests of each layer's value by the values of the weights that it depends on."""
        return self._digests(
            lambda layer: b" ".join(
                sorted(values_digest(self._tensors[p.key]) for p in _weights(layer))
            )
        )

    def _sizes(self, name: str) -> list[float]:
        """Return the squared norms of the weights that a branch ends with, in ascending order.

        They hardly move where the weights hardly move, so that a trained network keeps its order.
        """
        found, seen, pending = [], {name}, [name]
        while pending:
            name = pending.pop()
            weights = _weights(self._layers[name])
            found += [float(squared_norms(self._tensors[p.key].detach()[None])) for p in weights]
            new = [x for x in self._inputs[name] if x not in seen and not weights]
            seen.update(new)
            pending += new
        return sorted(found)

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
                sizes = {x: self._sizes(x) for x in alike}
                is_clear = len({tuple(x) for x in sizes.values()}) == len(sizes)
                content = dict.fromkeys(alike, b"") if is_clear else self._content
                alike = sorted(alike, key=lambda x: (sizes[x], content[x]))
            ordered += alike
        return ordered

    def _unreached_by_parent(self) -> dict[str, list[str]]:
        """Return the layers inside a module that is one step of the network, in natural order."""
        inside: dict[str, list[str]] = {}
        for name in sorted(self._layers, key=natural_key):
            layer = self._layers[name]
            if layer.inputs or name in self._read or layer.kind == "input" or layer.is_value:
                continue
            parent = name.rpartition(".")[0]
            while parent and parent not in self._read and not self._inputs.get(parent):
                parent = parent.rpartition(".")[0]
            if parent:
                inside.setdefault(parent, []).append(name)
        return inside


def _weights(layer: Layer) -> list[Param]:
    """Return a layer's matrices; of a lone parameter, any weights but a single number."""
    least = 1 if layer.is_value else 2
    return [p for p in layer.params if len(p.shape) >= least and p.size > 1]


def _shapes(layer: Layer) -> list[tuple[int, ...]]:
    """Return the shapes of a layer's weights, rows first."""
    return sorted(
        (p.shape[p.axis], *p.shape[: p.axis], *p.shape[p.axis + 1 :]) for p in _weights(layer)
    )
