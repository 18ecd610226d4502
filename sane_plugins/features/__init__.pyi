from .encoders import (
    ENCODERS,
    EncodeOptions,
    Encoder,
    Encoding,
    SaneEncoder,
    StatisticsEncoder,
    embed,
    load_model,
)
from .encoding_file import write_encodings
from .layer_statistics import slot_moments, statistics, structure

__all__ = [
    "ENCODERS",
    "EncodeOptions",
    "Encoder",
    "Encoding",
    "SaneEncoder",
    "StatisticsEncoder",
    "embed",
    "load_model",
    "slot_moments",
    "statistics",
    "structure",
    "write_encodings",
]
