"""Values that no channel affects: sizes and what is computed from them, scales of activations, zeros."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from math import prod

from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.model_file.proto import STANDARD
from sane_onnx.model_file.shapes import Shape

# The values of their outputs are those of their first input, or all inputs are computed with one by one.
_SPREADING = ("CastLike", "Expand", "Reshape", "Slice", "Squeeze", "Tile", "Unsqueeze")
_ELEMENTWISE = ("Add", "Cast", "Div", "Identity", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub")
_OTHERS = (
    "And",
    "Ceil",
    "Concat",
    "ConstantOfShape",
    "Equal",
    "Floor",
    "Gather",
    "Greater",
    "Less",
    "Max",
    "Min",
    "Mod",
    "Not",
    "Or",
    "Range",
    "ReduceProd",
    "Where",
)


class ChannelFree:
    """`values` that depend on no channel, and those of them whose numbers are all the same, `uniform`."""

    def __init__(
        self,
        nodes: Sequence[NodeProto],
        constants: Mapping[str, Constant],
        params: Container[str],
        shapes: Mapping[str, Shape],
    ) -> None:
        self.values: set[str] = set()
        self.uniform: set[str] = set()
        self._constants, self._params, self._shapes = constants, params, shapes
        for node in nodes:
            self._add(node)

    def _add(self, node: NodeProto) -> None:
        operator, inputs = node.op_type, [name for name in node.input if name]
        if operator == "DynamicQuantizeLinear":
            self.values.update(filter(None, node.output[1:]))
            self.uniform.update(filter(None, node.output[1:]))
        elif operator == "Mul" and not self.uniform.isdisjoint(inputs):
            # Scales of weights, one per channel, move with the channels.
            rest = [name for name in inputs if name not in self.uniform]
            if all(name in self._constants and name not in self._params for name in rest):
                self.values.update(node.output)
                self.uniform.update(node.output)
        elif node.domain not in STANDARD or len(node.output) != 1:
            return
        elif operator in ("Shape", "Size"):
            self._add_value(node, is_uniform=False)
        elif operator in _SPREADING and self._is_free(inputs[0] if inputs else ""):
            others = [] if operator == "CastLike" else inputs[1:]
            if all(map(self._is_free, others)):
                self._add_value(node, self._is_uniform(inputs[0]))
        elif operator in (*_ELEMENTWISE, *_OTHERS) and inputs and all(map(self._is_free, inputs)):
            is_elementwise = operator in _ELEMENTWISE and all(map(self._is_uniform, inputs))
            self._add_value(node, is_elementwise or operator == "ConstantOfShape")

    def _add_value(self, node: NodeProto, is_uniform: bool) -> None:
        name = node.output[0]
        shape = self._shapes.get(name)
        self.values.add(name)
        if is_uniform or (
            shape is not None and None not in shape and prod(filter(None, shape)) == 1
        ):
            self.uniform.add(name)

    def _is_free(self, name: str) -> bool:
        if name in self.values:
            return True
        constant = self._constants.get(name)
        if constant is None or name in self._params or constant.dtype is None:
            return False
        return not constant.dtype.is_floating_point or prod(constant.shape) == 1

    def _is_uniform(self, name: str) -> bool:
        constant = self._constants.get(name)
        return name in self.uniform or (constant is not None and prod(constant.shape) == 1)
