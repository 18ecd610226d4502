"""Which layer reads which: what lies behind a convolution, and which convolutions lie between two layers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import fx, nn

from sane_plugins.runtime import drawing_from
from sane_plugins.weights import Layer, Param, WeightGraph, trace_calls

_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_THROUGH = ("pointwise", "flatten", "reduce", "squeeze", "permute", "transpose", "unsqueeze")
Activation = Callable[[torch.Tensor], torch.Tensor]


class Connections:
    """The layers of a module's graph by name, in the order of execution, and who reads them."""

    def __init__(self, module: nn.Module, graph: WeightGraph) -> None:
        self.layers: dict[str, Layer] = {layer.name: layer for layer in graph.layers}
        self.calls: Mapping[str, fx.Node] = trace_calls(module)
        self._modules = dict(module.named_modules())
        inputs = {layer.name: layer.inputs for layer in graph.layers}
        try:
            order = TopologicalSorter(inputs).static_order()
            self.order = [name for name in order if name in self.layers]
        except CycleError:
            self.order = []
        self._values: set[str] = set()  # layers that are parameters, or computed from these alone
        for name in self.order:
            layer = self.layers[name]
            is_computed = bool(layer.inputs) and self._values.issuperset(layer.inputs)
            if layer.is_value or (is_computed and not layer.params):
                self._values.add(name)
        self._readers: dict[str, str] = {}
        for name in self.order:
            for param in self.params(name) if name not in self._values else ():
                self._readers.setdefault(param.key, name)
        self._consumers: dict[str, list[str]] = {}
        for layer in graph.layers:
            for name in layer.inputs:
                self._consumers.setdefault(name, []).append(layer.name)

    @property
    def are_known(self) -> bool:
        """Return whether the module was traced."""
        return bool(self.calls) and bool(self.order)

    def data(self, name: str) -> list[str]:
        """Return the layers that a layer reads values from; parameters that it reads are left out."""
        return [x for x in self.layers[name].inputs if x in self.layers and x not in self._values]

    def params(self, name: str) -> list[Param]:
        """Return a layer's tensors, and those that it reads as values."""
        layer = self.layers[name]
        read = [param for x in layer.inputs if x in self._values for param in self.params(x)]
        return [*layer.params, *read]

    def consumers(self, name: str) -> list[str]:
        """Return the layers that read a layer."""
        return self._consumers.get(name, [])

    def behind(self, name: str) -> Iterator[str]:
        """Yield the layers behind one, as long as each has one reader and no other values go into that."""
        while len(readers := self.consumers(name)) == 1 and len(self.data(readers[0])) == 1:
            name = readers[0]
            yield name

    def before(self, name: str) -> Iterator[str]:
        """Yield the layers before one, as long as each reads one value and only moves or bends it."""
        while len(sources := self.data(name)) == 1:
            name = sources[0]
            yield name
            if self.layers[name].kind not in _THROUGH:
                return

    def is_product(self, name: str) -> bool:
        """Return whether a layer multiplies what it reads."""
        return name in self.calls and self.calls[name].target in _PRODUCTS

    def activation(self, name: str) -> Activation | None:
        """Return the function of a layer that bends single values, or None for any other layer."""
        layer, node = self.layers[name], self.calls.get(name)
        if layer.kind != "pointwise" or layer.dims or node is None or self.params(name):
            return None
        is_module = node.op == "call_module"
        function = self._modules.get(str(node.target)) if is_module else _replayed(node)
        return None if function is None or _is_identity(function) else function

    def reader_of(self, key: str) -> str | None:
        """Return the first layer that computes with a tensor, or None."""
        return self._readers.get(key)

    def reach(self, members: Sequence[str]) -> dict[str, int]:
        """Return of each layer which members (bit i for number i) its value depends on, itself included."""
        numbers = {name: number for number, name in enumerate(members)}
        reach: dict[str, int] = {}
        for name in self.order:
            bits = 1 << numbers[name] if name in numbers else 0
            for source in self.data(name):
                bits |= reach.get(source, 0)
            reach[name] = bits
        return reach


@torch.no_grad()
def _is_identity(function: Activation) -> bool:
    """Return whether a function returns what it gets, as dropout does in evaluation mode."""
    probe = torch.linspace(-8, 8, 2 * 4 * 4).reshape(1, 2, 4, 4)
    try:
        with drawing_from(torch.Generator()):
            return torch.equal(function(probe.clone()), probe)
    except Exception:  # it may raise anything, for another number of channels for instance
        return False


def _replayed(node: fx.Node) -> Activation | None:
    """Return a function that repeats a call whose only tensor is its first argument."""
    if len(node.all_input_nodes) != 1 or node.op not in ("call_function", "call_method"):
        return None

    def call(values: torch.Tensor) -> torch.Tensor:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: values)
        function: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], function)(*args[1:], **kwargs)  # type: ignore[no-any-return]
        return function(*args, **kwargs)  # type: ignore[no-any-return]

    return call
