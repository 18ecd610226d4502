from .channel_ops import JOIN, OPAQUE, POINTWISE, SPATIAL, ChannelOp, ChannelOps
from .graph import MAX_VALUE, WeightGraph
from .layers import (
    MAX_AXES,
    NORM_ROLES,
    RUNNING,
    Kind,
    Layer,
    Param,
    Role,
    layer_name,
    shape_text,
    vectors_last,
)
from .module_copies import copy_module, evaluation_copy
from .modules import from_module, load_into
from .natural_order import natural_key, recurrent_place
from .scale import SIDE, Scale, apply_scale, fit_scale, undo_scale
from .tensor_identity import memory_key, tensor_digest, tensors_digest
from .token_layout import Slot, TokenLayout
from .token_stream import TokenBlock, token_blocks
from .tokens import Tokens, cut_rows, detokenize, token_tensors, token_values, tokenize

__all__ = [
    "JOIN",
    "MAX_AXES",
    "MAX_VALUE",
    "NORM_ROLES",
    "OPAQUE",
    "POINTWISE",
    "RUNNING",
    "SIDE",
    "SPATIAL",
    "ChannelOp",
    "ChannelOps",
    "Kind",
    "Layer",
    "Param",
    "Role",
    "Scale",
    "Slot",
    "TokenBlock",
    "TokenLayout",
    "Tokens",
    "WeightGraph",
    "apply_scale",
    "copy_module",
    "cut_rows",
    "detokenize",
    "evaluation_copy",
    "fit_scale",
    "from_module",
    "layer_name",
    "load_into",
    "memory_key",
    "natural_key",
    "recurrent_place",
    "shape_text",
    "tensor_digest",
    "tensors_digest",
    "token_blocks",
    "token_tensors",
    "token_values",
    "tokenize",
    "undo_scale",
    "vectors_last",
]
