"""Symbolic trace of a torch module (torch.fx): its layers and how they are connected.

Layers are recognised by module type, function object and method; never by a layer's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from sane_plugins.weights.channel_ops import ChannelOps
from sane_plugins.weights.function_channels import function_channel_ops, is_scalar
from sane_plugins.weights.layers import Layer
from sane_plugins.weights.module_channels import module_channel_op


def trace(module: nn.Module) -> tuple[Layer, ...] | None:
    """Return the layers in execution order, or None where the module cannot be traced.

    A module's layer has its qualified name and no params yet; its further calls end in `#1`, `#2`,
    ... A `parameter` layer has its qualified key. Names of other layers start with `%`. The module is
    traced in evaluation mode. A part that cannot be traced is one `opaque` layer.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        graph = _Tracer(param_shapes_constant=True).trace(module)
    except Exception:  # any code runs in a forward, so anything may be raised there
        return None
    finally:
        for part, training in modes.items():
            part.training = training
    return tuple(_LayerReader(module).read(graph))


class _Tracer(fx.Tracer):
    """Stops at torch's own layers, and at modules that cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at modules with hooks too: a hook would run on, and keep, symbolic values."""
        return bool(m._forward_pre_hooks) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace into a module, or record it as a single step where that fails."""
        last, stack = next(iter(reversed(self.graph.nodes)), None), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # any code runs in a forward, so anything may be raised there
            self.module_stack = stack
            while (node := next(iter(reversed(self.graph.nodes)), None)) is not last and node:
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _LayerReader:
    """Converts a traced graph to layers."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = dict(module.named_modules())
        self._layers: dict[str, Layer] = {}
        self._names: dict[fx.Node, str] = {}
        self._calls: dict[str, int] = {}

    def read(self, graph: fx.Graph) -> list[Layer]:
        """Return the layers of all nodes that are tensors."""
        for node in graph.nodes:
            if not is_scalar(node):
                self._add(node)
        return list(self._layers.values())

    def _add(self, node: fx.Node) -> None:
        inputs = dict.fromkeys(self._names[n] for n in node.all_input_nodes if n in self._names)
        name = self._name(node)
        for layer in self._describe(node, name, tuple(inputs)):
            self._layers[layer.name] = layer
            self._names[node] = layer.name

    def _describe(self, node: fx.Node, name: str, inputs: tuple[str, ...]) -> list[Layer]:
        """Return the layers of one node, in order."""
        if node.op == "placeholder":
            return [Layer(name=name, kind="input")]
        if node.op == "get_attr":
            return [Layer(name=name, kind="parameter")]
        if node.op == "output":
            return [Layer(name=name, kind="output", inputs=inputs)]
        if node.op == "call_module":
            ops: ChannelOps = (module_channel_op(self._modules[str(node.target)], len(inputs)),)
        else:
            ops = function_channel_ops(node, len(inputs))
        layers: list[Layer] = []
        for i, op in enumerate(ops):
            layers.append(
                Layer(
                    name=name if i == len(ops) - 1 else f"{name}:{i}",
                    kind=op.kind,
                    inputs=(layers[-1].name,) if layers else inputs,
                    groups=op.groups,
                    dims=op.dims,
                )
            )
        return layers

    def _name(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return str(node.target)
        if node.op != "call_module":
            return f"%{node.name}"
        target = str(node.target)
        call = self._calls[target] = self._calls.get(target, -1) + 1
        return f"{target}#{call}" if call else target
