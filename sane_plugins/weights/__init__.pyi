from .graph import StoredState, WeightGraph
from .kernels import crop_or_pad
from .layer_context import describe_layers
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
from .loading import load_into, load_nearest
from .masks import MAX_VALUE
from .module_tensors.computed_tensors import (
    ComputedTensor,
    ComputedTensors,
    Pruned,
    SpectrallyNormed,
    WeightNormed,
    stored_ties,
)
from .module_tensors.copies import copy_module, evaluation_copy
from .module_tensors.nncf_masks import nncf_masked
from .module_tensors.state import names_in_use
from .module_tensors.writing import computes_tensors
from .modules import from_module
from .natural_order import natural_key, recurrent_place
from .network_errors import RaisedByNetwork, network_errors_told, raised_by_network
from .rounding import is_rounded, rounded_to, widened
from .scale import SIDE, Scale, apply_scale, fit_scale, undo_scale
from .tensor_identity import memory_key, tensor_digest, tensors_digest
from .token_layout import Slot, TokenLayout
from .token_stream import TokenBlock, token_blocks
from .tokens import Tokens, cut_rows, detokenize, token_tensors, token_values, tokenize
from .tracing.channel_ops import JOIN, OPAQUE, POINTWISE, SPATIAL, ChannelOp, ChannelOps
from .tracing.trace import trace_calls
from .validity.fault import GraphFault
from .validity.graph_faults import find_fault, require_valid, stored_fault
from .validity.operations import possible
from .wrapper_names import PlainNames, strip_wrapper_prefixes

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
    "ComputedTensor",
    "ComputedTensors",
    "GraphFault",
    "Kind",
    "Layer",
    "Param",
    "PlainNames",
    "Pruned",
    "RaisedByNetwork",
    "Role",
    "Scale",
    "Slot",
    "SpectrallyNormed",
    "StoredState",
    "TokenBlock",
    "TokenLayout",
    "Tokens",
    "WeightGraph",
    "WeightNormed",
    "apply_scale",
    "computes_tensors",
    "copy_module",
    "crop_or_pad",
    "cut_rows",
    "describe_layers",
    "detokenize",
    "evaluation_copy",
    "find_fault",
    "fit_scale",
    "from_module",
    "is_rounded",
    "layer_name",
    "load_into",
    "load_nearest",
    "memory_key",
    "names_in_use",
    "natural_key",
    "network_errors_told",
    "nncf_masked",
    "possible",
    "raised_by_network",
    "recurrent_place",
    "require_valid",
    "rounded_to",
    "shape_text",
    "stored_fault",
    "stored_ties",
    "strip_wrapper_prefixes",
    "tensor_digest",
    "tensors_digest",
    "token_blocks",
    "token_tensors",
    "token_values",
    "tokenize",
    "trace_calls",
    "undo_scale",
    "vectors_last",
    "widened",
]
