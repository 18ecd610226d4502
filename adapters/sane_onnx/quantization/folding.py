"""Constants computed from constants: scales behind Reshape, Cast, Mul or a dequantisation of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant
from sane_onnx.model_file.proto import STANDARD
from sane_onnx.operators.attributes import integer
from sane_onnx.quantization.moves import moves_of
from sane_onnx.tensors import FLOATS, StoredTensor
from sane_plugins.errors import SourceError

_MOST_VALUES = 2**24
_DEEPEST = 16
_ARITHMETIC: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Add": torch.Tensor.add,
    "Div": torch.Tensor.div,
    "Mul": torch.Tensor.mul,
    "Sub": torch.Tensor.sub,
}


@dataclass(frozen=True, eq=False)
class Computed:
    """A constant that nodes compute from `roots`, the keys of constants of the file."""

    value: torch.Tensor = field(repr=False)
    roots: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the values."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Return their dtype."""
        return self.value.dtype

    def require(self) -> None:
        """Do nothing: the values were computed."""

    def read(self) -> torch.Tensor:
        """Return the values."""
        return self.value

    def write(self, _: torch.Tensor) -> None:
        """Raise `SourceError`: what is computed has no place in the file."""
        raise SourceError(
            f"{', '.join(self.roots[:3])}",
            "scales that the network computes would have to change",
            "scales that the file holds are needed",
            "leave this tensor as it was, or write a file in floating point",
        )


class Folder:
    """Finds constants by the names of values, and computes those that few exact operators make of others."""

    def __init__(self, nodes: Sequence[NodeProto], constants: Mapping[str, Constant]) -> None:
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._constants = constants
        self._computed: dict[str, Computed | None] = {}

    def find(self, name: str) -> Constant | None:
        """Return the constant of this name, stored or computed."""
        return self._constants[name] if name in self._constants else self._fold(name, 0)

    def roots(self, name: str) -> tuple[str, ...]:
        """Return the keys of the stored constants that a constant comes from."""
        computed = self._computed.get(name)
        return computed.roots if computed is not None else (name,)

    def integers(self, name: str) -> list[int] | None:
        """Return the numbers of a constant list of integers."""
        constant = self._constants.get(name)
        if not isinstance(constant, StoredTensor) or constant.dtype not in (
            torch.int64,
            torch.int32,
        ):
            return None
        if constant.size > _MOST_VALUES or len(constant.shape) > 1:
            return None
        constant.require()
        return [int(x) for x in constant.read().reshape(-1).tolist()] if constant.shape else None

    def _fold(self, name: str, depth: int) -> Computed | None:
        if name not in self._computed:
            self._computed[name] = None  # a cycle
            node = self._producers.get(name)
            if node is not None and depth < _DEEPEST and node.domain in STANDARD:
                self._computed[name] = self._compute(node, depth)
        return self._computed[name]

    def _compute(self, node: NodeProto, depth: int) -> Computed | None:
        if len(node.output) != 1 or not node.input:
            return None
        operands: list[tuple[torch.Tensor, tuple[str, ...]]] = []
        for name in node.input[: 1 if _moves(node) else None]:
            operand = self._operand(name, depth)
            if operand is None:
                return None
            operands.append(operand)
        value = self._apply(node, [value for value, _ in operands])
        return None if value is None else Computed(value, sum((roots for _, roots in operands), ()))

    def _operand(self, name: str, depth: int) -> tuple[torch.Tensor, tuple[str, ...]] | None:
        constant = self._constants.get(name) or self._fold(name, depth + 1)
        if constant is None or constant.dtype is None or prod(constant.shape) > _MOST_VALUES:
            return None
        constant.require()
        return constant.read(), constant.roots if isinstance(constant, Computed) else (name,)

    def _apply(self, node: NodeProto, values: list[torch.Tensor]) -> torch.Tensor | None:
        operator, first = node.op_type, values[0]
        if _moves(node):
            steps = moves_of(node, tuple(first.shape), self.integers)
            return (
                None
                if steps is None
                else first.reshape(steps[0][-1].after if steps[0] else first.shape)
            )
        if operator == "Cast":
            dtype = FLOATS.get(integer(node, "to", 0))
            return first.to(dtype) if dtype is not None else None
        is_single = len(values) > 1 and all(x.numel() == 1 for x in values[1:])
        if operator == "DequantizeLinear" and is_single:
            shifted = first.float() - (values[2].float() if len(values) > 2 else 0)
            return (shifted * values[1].float()).to(values[1].dtype)
        is_exact = all(x.is_floating_point() and x.dtype.itemsize > 1 for x in values)
        if operator not in _ARITHMETIC or len(values) != 2 or not is_exact:
            return None
        try:
            shape = torch.broadcast_shapes(*(x.shape for x in values))
        except RuntimeError:
            return None
        return _ARITHMETIC[operator](*values) if prod(shape) <= _MOST_VALUES else None


def _moves(node: NodeProto) -> bool:
    """Return whether a node keeps its numbers and their order."""
    return node.op_type in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
