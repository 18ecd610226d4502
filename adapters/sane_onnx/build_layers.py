"""A model's nodes as layers in order of first use, connected as far as that is understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from onnx import ModelProto, NodeProto

from sane_onnx.attributes import has
from sane_onnx.classify_constants import Owned, Uses
from sane_onnx.constants import Source
from sane_onnx.inline import Flat
from sane_onnx.operator_channels import OperatorCall, describe, gives_shape, is_join
from sane_onnx.operator_weights import Weights, outputs, weights_of
from sane_onnx.proto import STANDARD
from sane_onnx.shapes import infer
from sane_onnx.tensors import StoredTensor
from sane_onnx.topological_order import ordered
from sane_onnx.views import views
from sane_plugins.errors import SourceError
from sane_plugins.weights import OPAQUE, ChannelOps, Kind, Layer, Param, vectors_last

# Lists of axes and shapes are short.
_FEW = 64


class LayerReader:
    """Walks through a model's nodes once and makes their layers."""

    def __init__(self, path: Path, model: ModelProto, flat: Flat, uses: Uses, owned: Owned) -> None:
        self._path, self._flat, self._uses = path, flat, uses
        self._nodes = ordered(flat.nodes)
        self._constants = flat.constants
        self._shapes = infer(model, flat, self._nodes)
        self._params = owned.params
        self._shapes |= {key: param.shape for key, param in owned.params.items()}
        self._numbers = {
            name: [int(x) for x in constant.read().tolist()]
            for name, constant in flat.constants.items()
            if _is_list(constant)
        }
        self._reads = views(self._nodes, owned.params, self._numbers)
        self._free = self._free_values()
        self._layers: dict[str, Layer] = {}
        self._again: Counter[str] = Counter()
        self._values: dict[str, str] = {}

    def read(self) -> tuple[Layer, ...]:
        """Return all layers. Raises `SourceError` for a value that nothing gives."""
        for name in self._flat.inputs:
            self._values[name] = self._add(f"%{name}", "input")
        for node in self._nodes:
            is_known = all(
                name in self._values or name in self._reads for name in node.output if name
            )
            if node.output and not is_known and not self._free.issuperset(node.output):
                self._node(node)
        for name in self._flat.outputs:
            self._add(f"%output {name}", "output", inputs=self._inputs([name]))
        owned = {param.key for layer in self._layers.values() for param in layer.params}
        self._inputs(key for key in self._params if key not in owned)
        return tuple(self._layers.values())

    def _free_values(self) -> set[str]:
        """Return the values that depend on no channel: scales of integers, and products of these."""
        free: set[str] = set()
        for node in self._nodes:
            if node.op_type == "DynamicQuantizeLinear":
                free.update(filter(None, node.output[1:]))
            elif node.op_type == "Mul" and free.intersection(node.input):
                rest = [x for x in node.input if x not in free]
                if all(x in self._constants and x not in self._params for x in rest):
                    free.update(node.output)
        return free

    def _node(self, node: NodeProto) -> None:
        given = [name for name in node.output if name in self._uses and name not in self._free]
        is_single = given == list(node.output[:1]) or not given
        attached = self._flat.owned.get(node.output[0], {})
        weights = weights_of(node, self._reads, self._shapes)
        if weights is not None and (is_single or weights.is_pinned):
            self._weighted(node, weights)
            return
        name = f"%{node.output[0]}"
        if gives_shape(node):
            self._values[node.output[0]] = self._add(name, "input")
            return
        ops = self._channel_ops(node) if is_single and not attached else OPAQUE
        follows_first = ops is not OPAQUE and not is_join(node)
        inputs = self._inputs(node.input[:1] if follows_first else node.input)
        params = vectors_last(self._params[x] for x in attached.values() if x in self._params)
        if params:
            kind: Kind = "linear" if len(params[0].shape) > 1 else "unknown"
            inputs = (self._add(params[0].key.rpartition("/")[0], kind, params, inputs),)
        for i, op in enumerate(ops):
            label = name if i == len(ops) - 1 else f"{name}:{i}"
            inputs = (self._add(label, op.kind, (), inputs, op.groups, op.dims),)
        given = [name for name in node.output if name and name not in self._free]
        self._values.update(dict.fromkeys(given, *inputs))

    def _weighted(self, node: NodeProto, weights: Weights) -> None:
        """Add a layer with weights; it takes the vector that is added next as its bias."""
        params, given = weights.params, list(filter(None, node.output))
        given += self._rescaled(node)
        following = self._bias(given[-1], weights) if len(params) == 1 else None
        if following is not None:
            bias, output = following
            params, given = (*params, bias), [*given, output]
        prefixes = (param.key.rpartition(".")[0] for param in params)
        name = next(filter(None, prefixes), params[0].key)
        inputs = self._inputs([weights.data])
        if weights.is_pinned:
            inputs = (self._add(f"%before {name}", "opaque", inputs=inputs),)
        layer = self._add(name, weights.kind, params, inputs, weights.groups, weights.dims)
        if weights.is_pinned:
            layer = self._add(f"%after {name}", "opaque", inputs=(layer,))
        self._values.update(dict.fromkeys(given, layer))

    def _rescaled(self, node: NodeProto) -> list[str]:
        """Return the values on the way from a product of integers to the real numbers it stands for."""
        found: list[str] = []
        value = node.output[0]
        while node.op_type in ("ConvInteger", "MatMulInteger"):
            reader, other = self._only_reader(value)
            is_scaled = reader.op_type == "Mul" and other in self._free
            if reader.op_type != "Cast" and not is_scaled:
                break
            value = reader.output[0]
            found.append(value)
        return found

    def _only_reader(self, value: str) -> tuple[NodeProto, str]:
        """Return the node that alone reads a value, and its other input; an empty node if there is none."""
        readers = self._uses.nodes.get(value, [])
        if len(readers) != 1 or value in self._uses.others:
            return NodeProto(), ""
        ((node, place),) = readers
        others = [name for i, name in enumerate(node.input) if i != place]
        return (node, "".join(others)) if node.output and len(others) < 2 else (NodeProto(), "")

    def _bias(self, output: str, weights: Weights) -> tuple[Param, str] | None:
        """Return the bias that the only reader of `output` adds, and the sum's name."""
        is_matrix = weights.kind in ("linear", "conv", "transposed_conv") and not weights.is_pinned
        node, other = self._only_reader(output)
        is_sum = node.op_type == "Add" and node.domain in STANDARD and not has(node, "axis")
        if not is_matrix or not is_sum:
            return None
        bias, weight = self._reads.get(other), weights.params[0]
        count = outputs(weight) * (weights.groups if weights.kind == "transposed_conv" else 1)
        at = -1 if weights.kind == "linear" else 1 - len(weight.shape)
        if bias is None or bias.param.shape != (count,) or len(bias.shape) < -at:
            return None
        if bias.shape[at] != count or prod(bias.shape) != count:
            return None
        return replace(bias.param, role="bias"), node.output[0]

    def _channel_ops(self, node: NodeProto) -> ChannelOps:
        """Return what a node does; opaque where another input than those followed matters."""
        ops = describe(OperatorCall(node, self._shapes, self._numbers))
        others = node.input if is_join(node) else node.input[1:]
        if is_join(node):
            is_safe = all(self._is_weight_or_number(name) for name in others)
        else:
            # The shapes alone prove what a reshape does, however its target was computed.
            is_safe = node.op_type == "Reshape" or all(
                not name or name in self._constants or name in self._reads for name in others
            )
        return ops if is_safe else OPAQUE

    def _is_weight_or_number(self, name: str) -> bool:
        """Tell whether a constant can be followed: a weight has channels, a single number none."""
        tensor = self._constants.get(name)
        return tensor is None or name in self._params or prod(tensor.shape) == 1

    def _inputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the layers that give these values; constants that are no weights have none."""
        found = (self._source(name) for name in names if name)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def _source(self, value: str) -> str | None:
        if value in self._values:
            return self._values[value]
        if value in self._free:
            return None
        read = self._reads.get(value)
        if read is not None:
            param = read.param
            inputs = () if value == param.key else self._inputs([param.key])
            kind: Kind = "parameter" if not inputs else "pointwise" if read.is_plain else "opaque"
            name = self._add(value, kind, () if inputs else (param,), inputs)
            self._values[value] = name
            return name
        if value in self._constants:
            return None
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
        """Add a layer under its name, or that name with a number where it is taken; return the name."""
        unique = name
        while unique in self._layers:
            self._again[name] += 1
            unique = f"{name}#{self._again[name]}"
        self._layers[unique] = Layer(
            name=unique, kind=kind, params=params, inputs=inputs, groups=groups, dims=dims
        )
        return unique


def _is_list(constant: Source) -> bool:
    is_short = (
        isinstance(constant, StoredTensor) and len(constant.shape) == 1 and constant.size < _FEW
    )
    return is_short and constant.dtype == torch.int64
