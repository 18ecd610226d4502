from .embedding_graft import PixelChange
from .map_regression import fit_to_maps
from .mimetic import write_mimetic
from .structure import TokenNetwork
from .token_regression import fit_writers
from .tracing import has_attention
from .transformer_graft import TransformerGraft, graft_attention, read_transformer

__all__ = [
    "PixelChange",
    "TokenNetwork",
    "TransformerGraft",
    "fit_to_maps",
    "fit_writers",
    "graft_attention",
    "has_attention",
    "read_transformer",
    "write_mimetic",
]
