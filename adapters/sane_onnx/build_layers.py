"""Build layers from a model's nodes, in topological order, connected as far as operators are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

from onnx import ModelProto, NodeProto

from sane_onnx.channel_free import ChannelFree
from sane_onnx.classify_constants import ClassifiedConstants, Uses
from sane_onnx.model_file.inline import InlinedModel
from sane_onnx.model_file.known_integers import infer_values
from sane_onnx.model_file.proto import STANDARD
from sane_onnx.operators.attributes import has
from sane_onnx.operators.operator_channels import (
    OperatorCall,
    channel_ops,
    is_join,
)
from sane_onnx.operators.operator_weights import NodeWeights, output_count, weights_of
from sane_onnx.quantization.weight_views import trace_views
from sane_onnx.recurrent_parts import trace_parts
from sane_plugins.errors import SourceError
from sane_plugins.weights import OPAQUE, ChannelOps, Kind, Layer, Param, possible, vectors_last


class LayerBuilder:
    """Builds the layers of one model in one pass over its nodes."""

    def __init__(
        self,
        path: Path,
        model: ModelProto,
        inlined: InlinedModel,
        uses: Uses,
        classified: ClassifiedConstants,
    ) -> None:
        self._path, self._inlined, self._uses = path, inlined, uses
        self._nodes = classified.nodes
        self._constants = inlined.constants
        self._shapes, self._integers = infer_values(model, inlined, self._nodes)
        self._params = classified.params
        self._shapes |= {key: param.shape for key, param in classified.params.items()}
        self._parts = trace_parts(self._nodes, classified.params)
        self._views = trace_views(
            self._nodes, classified.params, self._integers, classified.dequantized
        )
        free = ChannelFree(self._nodes, self._constants, classified.params, self._shapes)
        self._channel_free, self._uniform = free.values, free.uniform
        self._settings = self._channel_free.union(self._constants)
        self._layers: dict[str, Layer] = {}
        self._suffixes: Counter[str] = Counter()
        self._values: dict[str, str] = {}

    def build(self) -> tuple[Layer, ...]:
        """Return all layers. Raises `SourceError` for a value that no node produces before it is used."""
        for name in self._inlined.inputs:
            self._values[name] = self._add(f"%{name}", "input")
        for node in self._nodes:
            is_known = all(
                name in self._values or name in self._views or name in self._parts
                for name in node.output
                if name
            )
            if node.output and not is_known and not self._channel_free.issuperset(node.output):
                self._add_node(node)
        for name in self._inlined.outputs:
            self._add(f"%output {name}", "output", inputs=self._inputs([name]))
        used = {param.key for layer in self._layers.values() for param in layer.params}
        self._inputs(key for key in self._params if key not in used)
        return tuple(self._layers.values())

    def _add_node(self, node: NodeProto) -> None:
        outputs = [
            name for name in node.output if name in self._uses and name not in self._channel_free
        ]
        is_single = outputs == list(node.output[:1]) or not outputs
        attribute_constants = self._inlined.attribute_constants.get(node.output[0], {})
        weights = weights_of(node, self._views, self._parts, self._shapes, self._settings)
        if weights is not None and (is_single or weights.is_opaque):
            self._add_weight_layer(node, weights)
            return
        name = f"%{node.output[0]}"
        ops = self._channel_ops(node) if is_single and not attribute_constants else OPAQUE
        follows_first = ops is not OPAQUE and not is_join(node)
        inputs = self._inputs(node.input[:1] if follows_first else node.input)
        params = vectors_last(
            self._params[x] for x in attribute_constants.values() if x in self._params
        )
        if params:
            kind: Kind = "linear" if len(params[0].shape) > 1 else "unknown"
            inputs = (self._add(params[0].key.rpartition("/")[0], kind, params, inputs),)
        for i, op in enumerate(ops):
            label = name if i == len(ops) - 1 else f"{name}:{i}"
            inputs = (self._add(label, op.kind, (), inputs, op.groups, op.dims),)
        outputs = [name for name in node.output if name and name not in self._channel_free]
        self._values.update(dict.fromkeys(outputs, *inputs))

    def _add_weight_layer(self, node: NodeProto, weights: NodeWeights) -> None:
        """Add a layer with weights; a constant vector that is added to its output becomes its bias."""
        params, outputs = weights.params, list(filter(None, node.output))
        outputs += self._scaled_outputs(node)
        is_last = len(params) == 1 and not has(node, "activation") and not weights.added
        bias_sum = self._added_bias(outputs[-1], weights) if is_last else None
        if bias_sum is not None:
            bias, output = bias_sum
            params, outputs = (*params, bias), [*outputs, output]
        prefixes = (param.key.rpartition(".")[0] for param in params)
        name = next(filter(None, prefixes), params[0].key)
        inputs = self._inputs([weights.data])
        if weights.is_opaque:
            used = {param.key for param in params}
            others = [
                x
                for x in node.input
                if x not in self._parts
                and (x not in self._views or self._views[x].param.key not in used)
            ]
            inputs = (self._add(f"%before {name}", "opaque", inputs=self._inputs(others)),)
        layer = self._add(name, weights.kind, params, inputs, weights.groups, weights.dims)
        if weights.added and not weights.is_opaque:
            summands = (layer, *self._inputs([weights.added]))
            layer = self._add(f"%sum {name}", "join", inputs=summands)
        if weights.is_opaque:
            layer = self._add(f"%after {name}", "opaque", inputs=(layer,))
        self._values.update(dict.fromkeys(outputs, layer))

    def _scaled_outputs(self, node: NodeProto) -> list[str]:
        """Return the values from the output of an integer product to its dequantised form."""
        values: dict[str, None] = {}
        value = node.output[0]
        while node.op_type in ("ConvInteger", "MatMulInteger"):
            user, other = self._single_user(value)
            is_scaled = user.op_type == "Mul" and other in self._channel_free
            if (user.op_type != "Cast" and not is_scaled) or user.output[0] in values:  # a cycle
                break
            value = user.output[0]
            values[value] = None
        return [*values]

    def _single_user(self, value: str) -> tuple[NodeProto, str]:
        """Return the single user of a value, and its other input; an empty node if there is none."""
        users = self._uses.nodes.get(value, [])
        if len(users) != 1 or value in self._uses.outputs:
            return NodeProto(), ""
        ((node, index),) = users
        others = [name for i, name in enumerate(node.input) if i != index]
        return (node, "".join(others)) if node.output and len(others) < 2 else (NodeProto(), "")

    def _added_bias(self, output: str, weights: NodeWeights) -> tuple[Param, str] | None:
        """Return the bias that the single user of `output` adds, and the name of the sum."""
        is_matrix = weights.kind in ("linear", "conv", "transposed_conv") and not weights.is_opaque
        node, other = self._single_user(output)
        is_sum = node.op_type == "Add" and node.domain in STANDARD and not has(node, "axis")
        if not is_matrix or not is_sum:
            return None
        bias, weight = self._views.get(other), weights.params[0]
        count = output_count(weight) * (weights.groups if weights.kind == "transposed_conv" else 1)
        axis = -1 if weights.kind == "linear" else 1 - len(weight.shape)
        if bias is None or bias.param.shape != (count,) or len(bias.shape) < -axis:
            return None
        if bias.shape[axis] != count or prod(bias.shape) != count:
            return None
        return replace(bias.param, role="bias"), node.output[0]

    def _channel_ops(self, node: NodeProto) -> ChannelOps:
        """Return what a node does to channels; opaque where channels of another input matter."""
        ops = channel_ops(OperatorCall(node, self._shapes, self._integers))
        others = node.input if is_join(node) else node.input[1:]
        if is_join(node):
            is_safe = all(self._is_weight_or_scalar(name) for name in others)
        else:
            # The shapes alone prove what a reshape does, however its target was computed.
            is_safe = node.op_type == "Reshape" or all(
                not name
                or name in self._constants
                or name in self._views
                or name in self._channel_free
                for name in others
            )
        return ops if is_safe else OPAQUE

    def _is_weight_or_scalar(self, name: str) -> bool:
        """Return whether an operand is a weight, a scalar or the same everywhere, or not a constant."""
        if name in self._channel_free:
            return name in self._uniform
        tensor = self._constants.get(name)
        return tensor is None or name in self._params or prod(tensor.shape) == 1

    def _inputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the layers that produce these values; constants that are not weights have none."""
        layers = (self._producer(name) for name in names if name)
        return tuple(dict.fromkeys(name for name in layers if name is not None))

    def _producer(self, value: str) -> str | None:
        if value in self._values:
            return self._values[value]
        if value in self._channel_free:
            return None
        view = self._views.get(value)
        if view is not None:
            param = view.param
            inputs = () if value == param.key else self._inputs([param.key])
            kind: Kind = (
                "parameter" if not inputs else "pointwise" if view.is_identity else "opaque"
            )
            name = self._add(value, kind, () if inputs else (param,), inputs)
            self._values[value] = name
            return name
        if value in self._constants:
            return None
        if value in self._parts:
            keys = [param.key for param in self._parts[value]]
            self._values[value] = self._add(value, "opaque", inputs=self._inputs(keys))
            return self._values[value]
        raise SourceError(
            f"{self._path}, {value!r}",
            "a node reads this value, which nothing before it gives",
            "nodes in order, with all their inputs, are needed",
            "export the network again",
        )

    def _add(
        self,
        name: str,
        kind: Kind,
        params: tuple[Param, ...] = (),
        inputs: tuple[str, ...] = (),
        groups: int = 1,
        dims: tuple[int, ...] = (),
    ) -> str:
        """Add a layer; return its name, numbered where another layer has it."""
        unique = name
        while unique in self._layers:
            self._suffixes[name] += 1
            unique = f"{name}#{self._suffixes[name]}"
        layer = Layer(
            name=unique, kind=kind, params=params, inputs=inputs, groups=groups, dims=dims
        )
        self._layers[unique] = possible(layer)  # a node may say what no operation does
        return unique
