"""Classify a model's constants into weights and others, with the reason for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from onnx import NodeProto

from sane_onnx.constants import Constant, ConstantOfShape, SparseConstant
from sane_onnx.masks import ELEMENTWISE, is_mask
from sane_onnx.model_file import limits
from sane_onnx.model_file.inline import InlinedModel
from sane_onnx.model_file.proto import STANDARD
from sane_onnx.model_file.topological_order import sort_topologically
from sane_onnx.operators.quantized_operators import scale_inputs
from sane_onnx.quantization.final_readers import final_readers
from sane_onnx.quantization.quantized import QuantizedWeight
from sane_onnx.quantization.quantized_weights import find_quantized_weights
from sane_onnx.quantization.rounded import RoundedWeight
from sane_onnx.tensors import FLOATS, StoredTensor, is_external, type_name
from sane_plugins.weights import Param

# Indices of inputs that parametrise an operator and are not weights.
_SETTING_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Dropout": (1,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (2,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
    "LSTM": (4, 5, 6),
    "GRU": (4, 5),
    "RNN": (4, 5),
}


@dataclass
class Uses:
    """Uses of each value: nodes with the index of the input; and the outputs of the model."""

    nodes: dict[str, list[tuple[NodeProto, int]]] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, inlined: InlinedModel) -> Uses:
        """Collect the uses in a model."""
        uses = cls(outputs=set(inlined.outputs))
        for node in inlined.nodes:
            for index, name in enumerate(node.input):
                uses.nodes.setdefault(name, []).append((node, index))
        return uses

    def __contains__(self, name: object) -> bool:
        return name in self.nodes or name in self.outputs


@dataclass
class ClassifiedConstants:
    """All `constants` by key; the weights among them as `params`; why others are `untouched`.

    `nodes` are the model's in topological order, `dequantized` values that arithmetic makes of integers.
    """

    nodes: list[NodeProto]
    params: dict[str, Param] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    untouched: dict[str, str] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    dequantized: Mapping[str, str] = field(default_factory=dict)


def classify(inlined: InlinedModel, uses: Uses) -> ClassifiedConstants:
    """Classify all constants. Raises `SourceError` for a weight whose values are incomplete."""
    nodes = sort_topologically(inlined.nodes)
    quantized = find_quantized_weights(nodes, inlined.constants, _ranks(inlined))
    attributes = _attribute_reasons(inlined)
    has_initializers = any(
        x.dtype in FLOATS.values() and key not in inlined.constant_nodes
        for key, x in inlined.constants.items()
    )
    classified = ClassifiedConstants(nodes, dequantized=quantized.dequantized)
    expanded = _Expanded(inlined.file_bytes)
    for key, constant in inlined.constants.items():
        readers = uses.nodes.get(key, ())
        if key in quantized.settings:
            reason = "how weights are quantised"
        elif key in quantized.weights:
            constant, reason = quantized.weights[key], ""
        elif key in quantized.not_read:
            reason, classified.missed[key] = quantized.not_read[key]
        else:
            final = final_readers(key, uses.nodes)
            # What is added may be the bias of a layer with one output.
            is_operand = has_initializers and all(
                x.op_type in ELEMENTWISE and x.op_type != "Add" for x, _ in final
            )
            is_number = key in inlined.constant_nodes and (is_operand or not constant.shape)
            reason = _reason_untouched(constant, readers, is_number)
            reason = reason or _reason_untouched(constant, final, False)
        if key in attributes and not reason:
            reason = attributes[key]
        if not reason and 0 in constant.shape:
            reason = "it has no values"
        if not reason and (reason := expanded.reason_untouched(constant)):
            classified.missed[key] = prod(constant.shape)
        if not reason and is_mask(constant, key, uses.nodes):
            reason = "a mask: it holds infinities"
        if reason:
            classified.untouched[key] = reason
            if isinstance(constant, StoredTensor) and is_external(constant.tensor):
                constant.require()  # a model that names a forbidden file is refused as a whole
        else:
            _add_weight(classified, key, constant)
        classified.constants[key] = constant
    for value, (reason, count) in quantized.other_uses.items():
        classified.untouched[value], classified.missed[value] = reason, count
    return classified


def _ranks(inlined: InlinedModel) -> dict[str, int]:
    """Return the number of axes of each input of the model that states its shape."""
    types = {name: value.type.tensor_type for name, value in inlined.inputs.items()}
    return {name: len(x.shape.dim) for name, x in types.items() if x.HasField("shape")}


class _Expanded:
    """Counts the bytes that weights take which the file does not hold in full."""

    def __init__(self, file_bytes: int) -> None:
        self._most: dict[type, int] = {
            ConstantOfShape: limits.REPEATED_BYTES,
            SparseConstant: limits.expanded_bytes(file_bytes),
        }
        self._left = dict(self._most)

    def reason_untouched(self, constant: Constant) -> str:
        """Return why a weight is not expanded beside those before it; empty where it is, or is whole."""
        kind = type(constant)
        if kind not in self._left:
            return ""
        nbytes = prod(constant.shape) * (constant.dtype or torch.float32).itemsize
        if nbytes > self._left[kind]:
            return f"with it more than {self._most[kind] >> 20} MiB would be made from few numbers"
        self._left[kind] -= nbytes
        return ""


def _add_weight(classified: ClassifiedConstants, key: str, constant: Constant) -> None:
    constant.require()
    dtype = constant.dtype
    assert dtype is not None, "weights have a torch dtype"
    classified.params[key] = Param(key=key, role="other", shape=constant.shape, dtype=dtype)
    if isinstance(constant, QuantizedWeight | RoundedWeight):
        classified.converted[key] = constant.description
    elif isinstance(constant, ConstantOfShape):
        classified.converted[key] = "one value, repeated by ConstantOfShape"
    elif isinstance(constant, SparseConstant):
        classified.converted[key] = "a sparse tensor, made dense"


def _reason_untouched(
    constant: Constant, readers: Sequence[tuple[NodeProto, int]], is_number: bool
) -> str:
    """Return why a constant is not a weight or cannot be read as one; empty for a weight."""
    operators = [node.op_type for node, _ in readers if node.domain in STANDARD]
    if constant.dtype not in FLOATS.values():
        kind = (
            type_name(constant.tensor)
            if isinstance(constant, StoredTensor)
            else str(constant.dtype)
        )
        return f"{kind} values are no weights"
    if readers and all(_is_setting(node, index) for node, index in readers):
        return f"a setting of {operators[0] if operators else readers[0][0].op_type}"
    # Exporters keep parameters as initializers, and numbers in the code as Constant nodes.
    return "a number in the computation" if prod(constant.shape) == 1 and is_number else ""


def _is_setting(node: NodeProto, index: int) -> bool:
    return index in _SETTING_INPUTS.get(node.op_type, ()) or index in scale_inputs(node)


def _attribute_reasons(inlined: InlinedModel) -> dict[str, str]:
    """Return why constants in attributes are no weights: those of standard operators are settings."""
    producers = {node.output[0]: node for node in inlined.nodes if node.output}
    return {
        key: f"a setting of {producers[output].op_type} ({name})"
        if producers[output].domain in STANDARD
        else ""
        for output, keys in inlined.attribute_constants.items()
        for name, key in keys.items()
    }
