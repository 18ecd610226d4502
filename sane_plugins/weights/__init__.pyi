from .digest import tensor_digest
from .function_rules import JOIN, OPAQUE, POINTWISE, SPATIAL, Step, Steps
from .graph import WeightGraph
from .layer_rules import NORM_ROLES, in_layer_order, memory, owner_of
from .layers import RUNNING, Kind, Layer, Param, Role
from .modules import from_module, load_into
from .scale import SIDE, Scale, apply_scale, fit_scale, undo_scale
from .token_layout import Slot, TokenLayout
from .token_stream import TokenBlock, token_blocks
from .tokens import Tokens, cut_rows, detokenize, token_tensors, token_values, tokenize

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
    "TokenLayout",
    "Tokens",
    "WeightGraph",
    "apply_scale",
    "cut_rows",
    "detokenize",
    "fit_scale",
    "from_module",
    "in_layer_order",
    "load_into",
    "memory",
    "owner_of",
    "tensor_digest",
    "token_blocks",
    "token_tensors",
    "token_values",
    "tokenize",
    "undo_scale",
]
