"""Converts a graph of torch.fx to layers."""

from __future__ import annotations

from torch import fx, nn

from sane_plugins.weights.layers import Layer
from sane_plugins.weights.tracing.channel_ops import OPAQUE, SPATIAL, ChannelOp, ChannelOps
from sane_plugins.weights.tracing.function_channels import function_channel_ops, is_scalar
from sane_plugins.weights.tracing.module_channels import module_channel_op
from sane_plugins.weights.tracing.probed_convolutions import is_plain_convolution
from sane_plugins.weights.validity.operations import possible

_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class LayerReader:
    """Converts a traced graph to layers."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = dict(module.named_modules())
        stored = module.state_dict(keep_vars=True).keys()
        self._computed_buffers = {k: x for k, x in module.named_buffers() if k not in stored}
        self._layers: dict[str, Layer] = {}
        self._names: dict[fx.Node, str] = {}
        self._calls: dict[str, int] = {}

    def read(self, graph: fx.Graph) -> list[Layer]:
        """Return the layers of all nodes that are tensors."""
        for node in graph.nodes:
            if not is_scalar(node):
                self._add(node)
        return list(self._layers.values())

    def calls(self) -> dict[str, fx.Node]:
        """Return the nodes of the layers that were read, by name."""
        return {name: node for node, name in self._names.items()}

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
            module = self._modules[str(node.target)]
            ops: ChannelOps = (module_channel_op(module, len(inputs)),)
            if ops == OPAQUE and is_plain_convolution(module):
                ops, inputs = (ChannelOp("conv", groups=int(module.groups)),), inputs[:1]
        elif self._is_blur(node):
            ops, inputs = (ChannelOp("pointwise", dims=SPATIAL),), inputs[:1]
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
        return [possible(layer) for layer in layers]  # some raise when the module runs

    def _is_blur(self, node: fx.Node) -> bool:
        """Return whether a convolution has one filter for every channel, which is no weight but computed.

        Of a network on the meta device nobody knows.
        """
        name = str(getattr(node.target, "__name__", ""))
        if node.op != "call_function" or name not in ("conv1d", "conv2d", "conv3d"):
            return False
        given = dict(zip(_CONV_ARGUMENTS, node.args, strict=False)) | node.kwargs
        weight = given.get("weight")
        if (
            not isinstance(weight, fx.Node)
            or weight.op != "get_attr"
            or given.get("bias") is not None
        ):
            return False
        filters = self._computed_buffers.get(str(weight.target))
        if filters is None or filters.is_meta or given.get("groups", 1) != len(filters):
            return False
        return bool((filters == filters[:1]).all())

    def _name(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return str(node.target)
        if node.op != "call_module":
            return f"%{node.name}"
        target = str(node.target)
        call = self._calls[target] = self._calls.get(target, -1) + 1
        return f"{target}#{call}" if call else target
