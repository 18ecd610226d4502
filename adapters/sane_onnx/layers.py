"""A model's nodes as layers in order of first use, connected as far as that is understood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto

from sane_onnx.attributes import has, integers
from sane_onnx.model import STANDARD, constant_value, constants
from sane_onnx.order import captured, ordered
from sane_onnx.owned import Owned, Uses
from sane_onnx.shapes import infer
from sane_onnx.tensors import to_torch
from sane_onnx.topology import Call, describe, gives_shape, is_join
from sane_onnx.weighted import Constant, Weights, outputs, weights_of
from sane_plugins.errors import SourceError
from sane_plugins.weights.graph import Kind, Layer, Param
from sane_plugins.weights.operations import OPAQUE, Steps

# Lists of axes and shapes are short.
_FEW = 64


def aliases(nodes: Iterable[NodeProto], params: Mapping[str, Param]) -> dict[str, Constant]:
    """Return the weights by every value that stands for them: themselves, copied or transposed."""
    found = {key: Constant(param) for key, param in params.items()}
    for node in nodes:
        source = found.get(node.input[0]) if node.input else None
        if source is None or node.domain not in STANDARD or not node.output:
            continue
        if node.op_type == "Identity":
            found[node.output[0]] = source
        elif node.op_type == "Transpose" and len(source.param.shape) == 2:
            flips = source.is_transposed ^ (integers(node, "perm") in (None, [1, 0]))
            found[node.output[0]] = replace(source, is_transposed=flips)
    return found


class LayerReader:
    """Walks through a model's nodes once and makes their layers."""

    def __init__(self, path: Path, model: ModelProto, uses: Uses, owned: Owned) -> None:
        self._path, self._graph, self._uses = path, model.graph, uses
        self._nodes = ordered(model.graph)
        self._constants = constants(model.graph)
        self._shapes = infer(model, self._nodes, self._constants)
        self._params = owned.params
        self._reads = aliases(self._nodes, owned.params)
        self._numbers = {n: _numbers(t, path) for n, t in self._constants.items() if _is_list(t)}
        self._layers: dict[str, Layer] = {}
        self._values: dict[str, str] = {}

    def read(self) -> tuple[Layer, ...]:
        """Return all layers. Raises `SourceError` for a value that nothing gives."""
        for value in self._graph.input:
            if value.name not in self._constants:
                self._values[value.name] = self._add(f"%{value.name}", "input")
        for node in self._nodes:
            is_known = all(
                name in self._values or name in self._reads for name in node.output if name
            )
            if constant_value(node) is None and not (is_known and node.output):
                self._node(node)
        for value in self._graph.output:
            self._add(f"%output {value.name}", "output", inputs=self._inputs([value.name]))
        owned = {param.key for layer in self._layers.values() for param in layer.params}
        self._inputs(key for key in self._params if key not in owned)
        return tuple(self._layers.values())

    def _node(self, node: NodeProto) -> None:
        if not node.output:
            return
        given = [name for name in node.output if name in self._uses]
        is_single = given == list(node.output[:1]) or not given
        weights = weights_of(node, self._reads, self._shapes) if is_single else None
        if weights is not None:
            self._weighted(node, weights)
            return
        name = f"%{node.output[0]}"
        if gives_shape(node):
            self._values[node.output[0]] = self._add(name, "input")
            return
        steps = self._steps(node) if is_single else OPAQUE
        follows_first = steps is not OPAQUE and not is_join(node)
        reads = node.input[:1] if follows_first else [*node.input, *self._captured(node)]
        inputs = self._inputs(reads)
        for i, step in enumerate(steps):
            label = name if i == len(steps) - 1 else f"{name}:{i}"
            inputs = (self._add(label, step.kind, (), inputs, step.groups, step.dims),)
        self._values.update(dict.fromkeys(filter(None, node.output), *inputs))

    def _weighted(self, node: NodeProto, weights: Weights) -> None:
        """Add a layer with weights; a linear one takes the vector that is added next as its bias."""
        params, output = weights.params, node.output[0]
        following = self._bias(output, params[0]) if weights.kind == "linear" else None
        if following is not None and len(params) == 1:
            bias, output = following
            params = (*params, bias)
        prefixes = (param.key.rpartition(".")[0] for param in params)
        name = next(filter(None, prefixes), params[0].key)
        inputs = self._inputs([weights.data])
        layer = self._add(name, weights.kind, params, inputs, weights.groups, weights.dims)
        self._values[output] = layer

    def _bias(self, output: str, weight: Param) -> tuple[Param, str] | None:
        """Return the bias that the only reader of `output` adds, and the sum's name."""
        readers = self._uses.nodes.get(output, [])
        if len(readers) != 1 or output in self._uses.others:
            return None
        ((node, place),) = readers
        if node.op_type != "Add" or node.domain not in STANDARD or has(node, "axis"):
            return None
        bias = self._reads.get(node.input[1 - place])
        if bias is None or bias.param.shape != (outputs(weight),):
            return None
        return replace(bias.param, role="bias"), node.output[0]

    def _steps(self, node: NodeProto) -> Steps:
        """Return what a node does; opaque where another input than those followed matters."""
        steps = describe(Call(node, self._shapes, self._numbers))
        others = node.input if is_join(node) else node.input[1:]
        if is_join(node):
            is_safe = all(self._is_weight_or_number(name) for name in others)
        else:
            # The shapes alone prove what a reshape does, however its target was computed.
            is_safe = node.op_type == "Reshape" or all(
                not name or name in self._constants or name in self._reads for name in others
            )
        return steps if is_safe else OPAQUE

    def _is_weight_or_number(self, name: str) -> bool:
        """Tell whether a constant can be followed: a weight has channels, a single number none."""
        tensor = self._constants.get(name)
        return tensor is None or name in self._params or all(size == 1 for size in tensor.dims)

    def _captured(self, node: NodeProto) -> Iterator[str]:
        known = captured(node)
        return (name for name in sorted(known) if name in self._values or name in self._reads)

    def _inputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the layers that give these values; constants that are no weights have none."""
        found = (self._source(name) for name in names if name)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def _source(self, value: str) -> str | None:
        if value in self._values:
            return self._values[value]
        read = self._reads.get(value)
        if read is not None:
            param = read.param
            inputs = () if value == param.key else self._inputs([param.key])
            kind: Kind = (
                "parameter" if not inputs else "opaque" if read.is_transposed else "pointwise"
            )
            name = self._add(value, kind, () if inputs else (param,), inputs)
            self._values[value] = name
            return name
        if value in self._constants:
            return None
        raise SourceError(
            f"{self._path}, {value!r}", "a node reads this value, which nothing before it gives",
            "nodes in order, with all their inputs, are needed", "export the network again",
        )  # fmt: skip

    def _add(
        self, name: str, kind: Kind, params: tuple[Param, ...] = (),
        inputs: tuple[str, ...] = (), groups: int = 1, dims: tuple[int, ...] = (),
    ) -> str:  # fmt: skip
        """Add a layer under its name, or that name with a number where it is taken; return the name."""
        number, unique = 0, name
        while unique in self._layers:
            number += 1
            unique = f"{name}#{number}"
        self._layers[unique] = Layer(
            name=unique, kind=kind, params=params, inputs=inputs, groups=groups, dims=dims
        )
        return unique


def _is_list(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1 and tensor.dims[0] < _FEW


def _numbers(tensor: TensorProto, path: Path) -> Sequence[int]:
    return [int(x) for x in to_torch(tensor, str(path)).tolist()]
