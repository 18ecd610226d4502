from .bfloat16 import Precision
from .checkpoint import embedded_sane, fingerprint, load_sane, read_metadata, save_sane
from .codec import Latents, decode, encode, standardized_tokens, walk
from .model import SANE, SANEConfig
from .streaming import WindowBatch

__all__ = [
    "SANE",
    "Latents",
    "Precision",
    "SANEConfig",
    "WindowBatch",
    "decode",
    "embedded_sane",
    "encode",
    "fingerprint",
    "load_sane",
    "read_metadata",
    "save_sane",
    "standardized_tokens",
    "walk",
]
