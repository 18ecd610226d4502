from .embedding_graft import PixelChange
from .mimetic import write_mimetic
from .transformer_graft import TransformerGraft, graft_attention, read_transformer

__all__ = [
    "PixelChange",
    "TransformerGraft",
    "graft_attention",
    "read_transformer",
    "write_mimetic",
]
