"""Which inputs of operators carry values on, and which are indices, sizes, conditions or counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from sane_onnx.model_file.proto import MICROSOFT, STANDARD
from sane_onnx.operators.quantized_operators import scale_inputs

_ALL = range(1000)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_COMPARISONS = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor")
# Indices of inputs that say where, how many or whether: no number of theirs is in the output.
_OTHERS: Mapping[str, Sequence[int]] = {
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), (1,)),
    **dict.fromkeys(_COMPARISONS, _ALL),
    **dict.fromkeys(
        ("ArgMax", "ArgMin", "IsInf", "IsNaN", "NonZero", "Not", "Shape", "Size"), _ALL
    ),
    **dict.fromkeys(("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow"), _ALL),
    **dict.fromkeys(("MelWeightMatrix", "NonMaxSuppression", "Range"), _ALL),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), (4,)),
    "AffineGrid": (1,),
    "Attention": (3, 6),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (1, 2),
    "OneHot": (0, 1),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ReverseSequence": (1,),
    "RoiAlign": (2,),
    "RotaryEmbedding": (3,),
    "STFT": (1, 3),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TensorScatter": (2,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    "Where": (0,),
}
# Every number of their output is one of their first input, or zero.
_KEEPING = (
    "Compress",
    "DepthToSpace",
    "Expand",
    "Gather",
    "GatherElements",
    "GatherND",
    "Pad",
    "ReverseSequence",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Trilu",
)


def carries_values(node: NodeProto, index: int) -> bool:
    """Return whether numbers of this input may be in the node's output, as they are or computed with."""
    if node.domain not in (*STANDARD, MICROSOFT):
        return True
    if index in scale_inputs(node):
        return False
    return node.domain == MICROSOFT or index not in _OTHERS.get(node.op_type, ())


def keeps_values(node: NodeProto, index: int) -> bool:
    """Return whether every number of the output is one of this input, wherever it lies, or zero."""
    if node.domain not in STANDARD:
        return False
    is_first = index == 0 and node.op_type in (*_KEEPING, "Flatten", "Reshape", "Unsqueeze")
    return is_first or node.op_type == "Concat" or (node.op_type == "Where" and index > 0)
