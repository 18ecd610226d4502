from .embedding_graft import PixelChange
from .mimetic import write_mimetic
from .token_regression import fit_writers
from .traced_run import has_attention
from .transformer_graft import TransformerGraft, graft_attention, read_transformer

__all__ = [
    "PixelChange",
    "TransformerGraft",
    "fit_writers",
    "graft_attention",
    "has_attention",
    "read_transformer",
    "write_mimetic",
]
