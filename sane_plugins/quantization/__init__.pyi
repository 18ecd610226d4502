from .find import Quantized, find_quantized
from .stored import FLOAT4, FLOAT8, Described, QuantizedTensor, UnreadTensor

__all__ = ["FLOAT4", "FLOAT8", "Described", "Quantized", "QuantizedTensor", "UnreadTensor", "find_quantized"]
