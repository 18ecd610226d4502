from .channel_nodes import ChannelNodes
from .steps import (
    AttentionStep,
    ContractionStep,
    ImageStep,
    NormStep,
    Step,
    SumStep,
    TableStep,
    TokenStep,
    VectorStep,
)
from .traced_run import TracedRun, execute, has_attention, plain_operators

__all__ = [
    "AttentionStep",
    "ChannelNodes",
    "ContractionStep",
    "ImageStep",
    "NormStep",
    "Step",
    "SumStep",
    "TableStep",
    "TokenStep",
    "TracedRun",
    "VectorStep",
    "execute",
    "has_attention",
    "plain_operators",
]
