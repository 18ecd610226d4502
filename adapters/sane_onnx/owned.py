"""Which constants of a model are weights, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto, TensorProto

from sane_onnx.model import STANDARD
from sane_onnx.order import captured
from sane_onnx.tensors import FLOATS, require_whole, type_name
from sane_plugins.weights.graph import Param

# Inputs that set how an operator works: numbers of the computation, no weights.
_SETTINGS: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2), "Dropout": (1,), "NonMaxSuppression": (2, 3, 4), "OneHot": (2,), "Pad": (2,),
    "Range": (0, 1, 2), "Resize": (1, 2), "Upsample": (1,), "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}  # fmt: skip
QUANTISED = "quantised"
_READS_QUANTISED = (
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
)  # fmt: skip


@dataclass
class Uses:
    """Who reads each value: nodes of the main graph with the place among their inputs, and others."""

    nodes: dict[str, list[tuple[NodeProto, int]]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, graph: GraphProto) -> Uses:
        """Collect the uses in a graph; outputs and sub-graphs are the others."""
        uses = cls(others={value.name for value in graph.output})
        for node in graph.node:
            for place, name in enumerate(node.input):
                uses.nodes.setdefault(name, []).append((node, place))
            uses.others |= captured(node)
        return uses

    def __contains__(self, name: object) -> bool:
        return name in self.nodes or name in self.others


@dataclass(frozen=True)
class Owned:
    """The floating-point constants that are weights, and the reasons why the others are not read."""

    params: Mapping[str, Param]
    untouched: Mapping[str, str]


def sort(found: Mapping[str, TensorProto], initializers: set[str], uses: Uses, place: str) -> Owned:
    """Tell weights from other constants. Raises `SourceError` for a weight that is not whole."""
    params, untouched = {}, {}
    for name, tensor in found.items():
        if reason := _reason(tensor, uses.nodes.get(name, ()), name in initializers):
            untouched[name] = reason
        else:
            require_whole(tensor, place)
            shape, dtype = tuple(tensor.dims), FLOATS[tensor.data_type]
            params[name] = Param(key=name, role="other", shape=shape, dtype=dtype)
    return Owned(params, untouched)


def _reason(tensor: TensorProto, readers: Sequence[tuple[NodeProto, int]], is_kept: bool) -> str:
    """Return why a constant is no weight that this version reads; empty where it is one."""
    operators = [node.op_type for node, _ in readers if node.domain in STANDARD]
    if tensor.data_type not in FLOATS:
        if any(operator in _READS_QUANTISED for operator in operators):
            return f"{QUANTISED} ({type_name(tensor)}), not read by this version"
        return f"{type_name(tensor)} values are no weights that this version reads"
    if readers and all(place in _SETTINGS.get(node.op_type, ()) for node, place in readers):
        return f"a setting of {operators[0] if operators else readers[0][0].op_type}"
    # Exporters keep parameters as initializers, and numbers in the code as Constant nodes.
    return "" if is_kept or tensor.dims else "a number in the computation"
