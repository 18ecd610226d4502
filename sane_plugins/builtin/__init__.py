"""Our own abilities, as plugins like anyone else's. Light at import: heavy imports are inside."""

from sane_plugins.builtin.abilities import (
    sane_encode,
    sane_initialize,
    sane_predict_properties,
)
from sane_plugins.builtin.portfolio import (
    sane_encoders,
    sane_engines,
    sane_property_heads,
    sane_samplers,
)
from sane_plugins.builtin.sources import sane_build, sane_open, sane_save

__all__ = [
    "sane_build",
    "sane_encode",
    "sane_encoders",
    "sane_engines",
    "sane_initialize",
    "sane_open",
    "sane_predict_properties",
    "sane_property_heads",
    "sane_samplers",
    "sane_save",
]
