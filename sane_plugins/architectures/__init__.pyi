from .build_code import BuildCode, build_code, described_code
from .building_blocks import PatchTokens
from .dry_run import image_count, run_on_meta
from .factory import build, build_by_name, call_anew, require_trusted
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
from .image_size import find_image_size, takes_image_size
from .input_channels import set_input_channels
from .model_library import build_model, build_named, open_named, unknown_model
from .model_spec import ModelSpec, Notes, build_with_weights
from .names import FAMILIES, SMALL_CNN, family_name, is_bare_name, without_options
from .size_limit import Size, SizeLimit
from .torchvision_import import import_torchvision, torchvision_fits, torchvision_has
from .trust import FULL_TRUST, NO_TRUST, Trust, describe_call, is_function_name

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "FIXED_SIZE",
    "FULL_TRUST",
    "NO_TRUST",
    "SMALL_CNN",
    "TAKES_SIZE",
    "BuildCode",
    "ModelSpec",
    "Notes",
    "PatchTokens",
    "Size",
    "SizeLimit",
    "Trust",
    "build",
    "build_by_name",
    "build_code",
    "build_model",
    "build_named",
    "build_with_weights",
    "call_anew",
    "describe_call",
    "described_code",
    "family_name",
    "find_image_size",
    "image_count",
    "import_torchvision",
    "is_bare_name",
    "is_function_name",
    "mlp",
    "open_named",
    "require_trusted",
    "resnet",
    "run_on_meta",
    "set_input_channels",
    "small_cnn",
    "small_cnn_size",
    "takes_image_size",
    "torchvision_fits",
    "torchvision_has",
    "unknown_model",
    "vit",
    "wide_cnn",
    "without_options",
]
