from .building_blocks import PatchTokens
from .dry_run import try_out
from .factory import build, build_by_name, is_function_name
from .families import (
    ACTIVATIONS,
    FIXED_SIZE,
    TAKES_SIZE,
    mlp,
    resnet,
    small_cnn,
    small_cnn_size,
    vit,
    wide_cnn,
)
from .input_channels import with_channels
from .model_spec import ModelSpec, Notes, own, with_weights
from .named import build_named, is_bare_name, open_named, parse_name
from .names import FAMILIES, SMALL_CNN, family_name
from .torchvision_import import import_torchvision

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "FIXED_SIZE",
    "SMALL_CNN",
    "TAKES_SIZE",
    "ModelSpec",
    "Notes",
    "PatchTokens",
    "build",
    "build_by_name",
    "build_named",
    "family_name",
    "import_torchvision",
    "is_bare_name",
    "is_function_name",
    "mlp",
    "open_named",
    "own",
    "parse_name",
    "resnet",
    "small_cnn",
    "small_cnn_size",
    "try_out",
    "vit",
    "wide_cnn",
    "with_channels",
    "with_weights",
]
