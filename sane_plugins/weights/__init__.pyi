from .digest import tensor_digest, tensors_digest
from .function_rules import JOIN, OPAQUE, POINTWISE, SPATIAL, Step, Steps
from .graph import RUNNING, Kind, Layer, Param, Role, WeightGraph
from .layer_rules import NORM_ROLES, in_layer_order, memory, owner_of
from .modules import from_module, load_into
from .scale import SIDE, Scale, apply_scale, fit_scale, undo_scale
from .token_stream import TokenBlock, token_blocks
from .tokens import Slot, Tokens, detokenize, slots, token_positions, tokenize

__all__ = [
    "JOIN",
    "NORM_ROLES",
    "OPAQUE",
    "POINTWISE",
    "RUNNING",
    "SIDE",
    "SPATIAL",
    "Kind",
    "Layer",
    "Param",
    "Role",
    "Scale",
    "Slot",
    "Step",
    "Steps",
    "TokenBlock",
    "Tokens",
    "WeightGraph",
    "apply_scale",
    "detokenize",
    "fit_scale",
    "from_module",
    "in_layer_order",
    "load_into",
    "memory",
    "owner_of",
    "slots",
    "tensor_digest",
    "tensors_digest",
    "token_blocks",
    "token_positions",
    "tokenize",
    "undo_scale",
]
