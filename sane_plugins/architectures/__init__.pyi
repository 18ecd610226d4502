from .building_blocks import PatchTokens
from .dry_run import try_out
from .families import (
    ACTIVATIONS,
    FIXED_SIZE,
    TAKES_SIZE,
    build,
    mlp,
    resnet,
    small_cnn,
    small_cnn_size,
    vit,
    wide_cnn,
)
from .input_channels import with_channels
from .model_spec import ModelSpec, Notes, own, with_weights
from .named import build_named, open_named, parse_name
from .names import SMALL_CNN
from .torchvision_import import import_torchvision

__all__ = [
    "ACTIVATIONS",
    "FIXED_SIZE",
    "SMALL_CNN",
    "TAKES_SIZE",
    "ModelSpec",
    "Notes",
    "PatchTokens",
    "build",
    "build_named",
    "import_torchvision",
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
