from .find import Quantized, find_quantized
from .not_floats import unread_reason
from .stored import FLOAT4, FLOAT8, Described, QuantizedTensor, UnreadTensor
from .wrappers import can_unwrap, dequantized_from, is_wrapper, unwrap

__all__ = [
    "FLOAT4",
    "FLOAT8",
    "Described",
    "Quantized",
    "QuantizedTensor",
    "UnreadTensor",
    "can_unwrap",
    "dequantized_from",
    "find_quantized",
    "is_wrapper",
    "unread_reason",
    "unwrap",
]
