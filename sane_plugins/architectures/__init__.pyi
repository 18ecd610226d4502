from .building_blocks import PatchTokens
from .dry_run import run_on_meta
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
from .input_channels import set_input_channels
from .model_library import build_model, build_named, open_named, unknown_model
from .model_spec import ModelSpec, Notes, build_with_weights
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
    "build_model",
    "build_named",
    "build_with_weights",
    "import_torchvision",
    "mlp",
    "open_named",
    "resnet",
    "run_on_meta",
    "set_input_channels",
    "small_cnn",
    "small_cnn_size",
    "unknown_model",
    "vit",
    "wide_cnn",
]
