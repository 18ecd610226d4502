"""Follow stored integers and small floats through the graph to where they become floating-point weights.

On the way they may be moved, looked up, cast and shifted by a zero point; then a node scales them, or
computes with them. What is not understood on the way is told, so that it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.model_file.proto import STANDARD
from sane_onnx.operators.attributes import integer
from sane_onnx.operators.becoming_floats import find_floats, makes_floats
from sane_onnx.operators.quantized_operators import quantized_input
from sane_onnx.operators.value_inputs import carries_values, keeps_values
from sane_onnx.quantization.carried import MOST_STEPS, Carried
from sane_onnx.quantization.find_spreads import SIGNED, SpreadFinder
from sane_onnx.quantization.moves import Move, append, look_up, moves_of
from sane_onnx.quantization.quantized import Dequantization
from sane_onnx.tensors import StoredTensor
from sane_plugins.weights import MAX_AXES


class ConstantFlow:
    """How a model uses its integers.

    `uses` are for a constant the values made of it and how they are dequantised, `lost` the nodes that
    compute with it in an unknown way. `dequantized` are values that arithmetic makes of integers on the way
    to a use, with the value that they come from.
    """

    def __init__(
        self,
        nodes: Sequence[NodeProto],
        constants: Mapping[str, Constant],
        index_ranks: Mapping[str, int],
    ) -> None:
        self.uses: dict[str, list[tuple[str, Dequantization]]] = {}
        self.lost: dict[str, list[NodeProto]] = {}
        self.dequantized: dict[str, str] = {}
        self._constants, self._spreads = constants, SpreadFinder(nodes, constants)
        self._ranks = dict(index_ranks)
        self._floats = {wide: find_floats(nodes, wide) for wide in (False, True)}
        self._carried: dict[str, list[Carried]] = {
            key: [Carried(key, x.dtype, x.shape)]
            for key, x in constants.items()
            if isinstance(x, StoredTensor) and x.is_quantized_type and x.dtype is not None
        }
        for node in nodes:
            if (
                node.op_type in ("Cast", "Identity")
                and node.input[:1]
                and node.input[0] in self._ranks
            ):
                self._ranks.update(dict.fromkeys(node.output, self._ranks[node.input[0]]))
            for index, name in enumerate(node.input):
                for carried in self._carried.get(name, ()):
                    self._follow(node, index, carried)

    def _follow(self, node: NodeProto, index: int, carried: Carried) -> None:
        """Record what a node does with numbers of a constant: it uses them, passes them on, or is unknown."""
        root = self._constants[carried.root]
        assert isinstance(root, StoredTensor), "only stored tensors are followed"
        rule = None
        if not carried.is_float and carried.zero is None:
            rule = quantized_input(node, index, root.is_byte)
        use = self._spreads.dequantization(node, rule, carried) if rule is not None else None
        if use is not None:
            self._use(node, carried, use)
            return
        outputs = self._passed(node, index, carried) if rule is None else None
        if outputs is None:
            self._lose(node, index, carried)
            return
        for name, value in zip(node.output, outputs, strict=False):
            held = self._carried.setdefault(name, [])
            if len(held) < MOST_STEPS:
                held.append(value)
            else:
                self.lost.setdefault(carried.root, []).append(node)

    def _use(self, node: NodeProto, carried: Carried, use: Dequantization) -> None:
        value = next(filter(None, node.output), "")
        self.uses.setdefault(carried.root, []).append((value, use))

    def _lose(self, node: NodeProto, index: int, carried: Carried) -> None:
        """Record a node that computes with the numbers in another way than scaling them."""
        root = self._constants[carried.root]
        is_wide = isinstance(root, StoredTensor) and root.is_wide
        if not carries_values(node, index):
            return
        if carried.is_float:
            self._use(node, carried, Dequantization(None, carried.zero, carried.dtype))
        elif (
            quantized_input(node, index, True)
            or makes_floats(node, is_wide)
            or not self._floats[is_wide].isdisjoint(node.output)
        ):
            self.lost.setdefault(carried.root, []).append(node)

    def _passed(self, node: NodeProto, index: int, carried: Carried) -> list[Carried] | None:
        """Return what each output holds of the numbers; None where the node does something else."""
        if node.domain not in STANDARD or not node.output:
            return None
        if not carries_values(node, index):
            return []
        if node.op_type == "Cast":
            return carried.cast(node)
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            return self._scaled(node, index, carried)
        if carried.moves is not None:
            steps = self._steps(node, index, carried)
            if steps is not None:
                return [carried.moved(x) for x in steps]
        return [carried.lost()] * len(node.output) if keeps_values(node, index) else None

    def _steps(
        self, node: NodeProto, index: int, carried: Carried
    ) -> Sequence[tuple[Move, ...]] | None:
        """Return the steps to each output where the node only moves numbers, to places that are known."""
        if node.op_type == "Concat":
            step = self._appended(node, index, carried)
            return [(step,)] if step is not None else None
        if index:
            return None
        steps = moves_of(node, carried.shape, self._spreads.folder.integers)
        if steps is None and node.op_type == "Gather" and len(node.input) == 2:
            axis, rank = integer(node, "axis", 0), self._ranks.get(node.input[1])
            is_inside = -len(carried.shape) <= axis < len(carried.shape)
            if rank is not None and rank <= MAX_AXES and is_inside:
                return [(look_up(carried.shape, axis % len(carried.shape), rank),)]
        return steps

    def _appended(self, node: NodeProto, index: int, carried: Carried) -> Move | None:
        axis, shapes = integer(node, "axis", 0), [self._shape(name) for name in node.input]
        known = [shape for shape in shapes if shape is not None]
        ranks = {len(shape) for shape in known}
        if len(known) < len(shapes) or len(ranks) > 1 or not -len(known[0]) <= axis < len(known[0]):
            return None
        lengths = [shape[axis] for shape in known]
        axis %= len(known[0])
        return append(carried.shape, axis, sum(lengths[:index]), sum(lengths))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        held = self._carried.get(name, ())
        if len(held) == 1:
            return held[0].shape if held[0].moves is not None else None
        return self._constants[name].shape if name in self._constants else None

    def _scaled(self, node: NodeProto, index: int, carried: Carried) -> list[Carried] | None:
        """Follow `(integers - zero) * scale` where elementwise operators compute it."""
        operator, is_scale = node.op_type, node.op_type in ("Mul", "Div")
        if len(node.input) != 2 or (index == 1 and operator in ("Sub", "Div")):
            return None
        # Differences of bytes wrap around.
        if not carried.is_float and (is_scale or carried.dtype not in SIGNED):
            return None
        spread = self._spreads.operand(node.input[1 - index], carried)
        if spread is None:
            return None
        if is_scale:
            scale = replace(spread, is_inverse=operator == "Div")
            self._use(node, carried, Dequantization(scale, carried.zero, carried.dtype))
        elif carried.zero is not None or not self._spreads.is_scaled_next(node.output[0]):
            return None
        self.dequantized[node.output[0]] = node.input[index]
        zero = replace(spread, is_negative=operator == "Add")
        return [] if is_scale else [replace(carried, zero=zero)]

    def constant(self, name: str) -> torch.Tensor | None:
        """Return the numbers of a constant, stored or computed."""
        constant = self._spreads.folder.find(name)
        return None if constant is None else constant.read()
