from .bfloat16 import Precision
from .checkpoint import embedded_sane, fingerprint, load_sane, read_metadata, save_sane
from .codec import Latents, decode, decode_tokens, encode
from .filling import fill
from .model import SANE, SANEConfig
from .normalization import standardized_blocks, standardized_tokens
from .streaming import WindowBatch, encode_stream, require_finite_result

__all__ = [
    "SANE",
    "Latents",
    "Precision",
    "SANEConfig",
    "WindowBatch",
    "decode",
    "decode_tokens",
    "embedded_sane",
    "encode",
    "encode_stream",
    "fill",
    "fingerprint",
    "load_sane",
    "read_metadata",
    "require_finite_result",
    "save_sane",
    "standardized_blocks",
    "standardized_tokens",
]
