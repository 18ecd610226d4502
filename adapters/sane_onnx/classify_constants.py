"""Which constants of a model are weights, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from onnx import NodeProto

from sane_onnx import find_quantized
from sane_onnx.constants import LARGEST, Filled, Source, Sparse
from sane_onnx.inline import Flat
from sane_onnx.proto import STANDARD
from sane_onnx.quantized import QuantizedWeight
from sane_onnx.tensors import FLOATS, StoredTensor, is_external, type_name
from sane_plugins.weights import Param

# Inputs that set how an operator works: numbers of the computation, no weights.
_SETTINGS: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Dropout": (1,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (2,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "LSTM": (4, 5, 6),
    "GRU": (4, 5),
    "RNN": (4, 5),
}


@dataclass
class Uses:
    """Who reads each value: nodes with the place among their inputs; and what the model gives."""

    nodes: dict[str, list[tuple[NodeProto, int]]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, flat: Flat) -> Uses:
        """Collect the uses in a model."""
        uses = cls(others=set(flat.outputs))
        for node in flat.nodes:
            for place, name in enumerate(node.input):
                uses.nodes.setdefault(name, []).append((node, place))
        return uses

    def __contains__(self, name: object) -> bool:
        return name in self.nodes or name in self.others


@dataclass
class Owned:
    """The constants that are weights, as params and sources, and the reasons why others are not."""

    params: dict[str, Param] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    untouched: dict[str, str] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)


def sort(flat: Flat, uses: Uses) -> Owned:
    """Tell weights from other constants. Raises `SourceError` for a weight that is not whole."""
    integers = find_quantized.find(flat.nodes, flat.constants)
    settings = {name for weight in integers.values() for name in weight.settings}
    attributes = _attributes(flat)
    owned, made = Owned(), 0
    for key, source in flat.constants.items():
        readers = uses.nodes.get(key, ())
        if key in settings:
            reason = "how weights are quantised"
        elif key in integers:
            source, reason = integers[key], ""
        else:
            reason = _reason(source, readers, key in flat.plain)
        if key in attributes and not reason:
            reason = attributes[key]
        if not reason and isinstance(source, Filled | Sparse):
            made += prod(source.shape) * (source.dtype or torch.float32).itemsize
            if made > LARGEST:
                reason = f"with it more than {LARGEST >> 30} GiB would be made from few numbers"
                owned.missed[key] = prod(source.shape)
        if reason:
            owned.untouched[key] = reason
            if isinstance(source, StoredTensor) and is_external(source.tensor):
                source.require()  # a file that names others than it may is refused as a whole
            if _may_be_weights(source, readers) and key not in settings:
                owned.missed[key] = prod(source.shape)
        else:
            _own(owned, key, source)
        owned.sources[key] = source
    return owned


def _own(owned: Owned, key: str, source: Source) -> None:
    source.require()
    dtype = source.dtype
    assert dtype is not None, "only types that torch has are owned"
    owned.params[key] = Param(key=key, role="other", shape=source.shape, dtype=dtype)
    if isinstance(source, QuantizedWeight):
        owned.converted[key] = source.told
    elif isinstance(source, Filled):
        owned.converted[key] = "one value, repeated by ConstantOfShape"
    elif isinstance(source, Sparse):
        owned.converted[key] = "a sparse tensor, made dense"


def _reason(source: Source, readers: Sequence[tuple[NodeProto, int]], is_plain: bool) -> str:
    """Return why a constant is no weight that is read; empty where it is one."""
    operators = [node.op_type for node, _ in readers if node.domain in STANDARD]
    if source.dtype not in FLOATS.values():
        kind = type_name(source.tensor) if isinstance(source, StoredTensor) else str(source.dtype)
        if _may_be_weights(source, readers):
            return f"{kind} values whose scales are not known constants"
        return f"{kind} values are no weights"
    if readers and all(place in _SETTINGS.get(node.op_type, ()) for node, place in readers):
        return f"a setting of {operators[0] if operators else readers[0][0].op_type}"
    # Exporters keep parameters as initializers, and numbers in the code as Constant nodes.
    return "a number in the computation" if not source.shape and is_plain else ""


def _may_be_weights(source: Source, readers: Sequence[tuple[NodeProto, int]]) -> bool:
    if source.dtype in FLOATS.values() or not isinstance(source, StoredTensor):
        return False
    return any(find_quantized.reads_weights(node, place) for node, place in readers)


def _attributes(flat: Flat) -> dict[str, str]:
    """Return why numbers inside nodes are no weights: standard operators keep settings there."""
    makers = {node.output[0]: node for node in flat.nodes if node.output}
    return {
        key: f"a setting of {makers[output].op_type} ({name})"
        if makers[output].domain in STANDARD
        else ""
        for output, keys in flat.owned.items()
        for name, key in keys.items()
    }
