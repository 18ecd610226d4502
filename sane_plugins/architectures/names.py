"""Names of our network families; imports nothing heavy, as command help needs them."""

import re
from typing import Any

SMALL_CNN = "small-cnn"  # the default of every command
ZOO_FAMILIES = ("small_cnn", "wide_cnn", "mlp", "resnet", "vit")
PHOTO_FAMILIES = ("small_resnet", "small_mobilenet", "small_convnext")
FAMILIES = (*ZOO_FAMILIES, *PHOTO_FAMILIES)


def family_name(name: str) -> str | None:
    """Return the canonical name of one of our families, in either spelling; None for any other name."""
    canonical = name.replace("-", "_")
    return canonical if canonical in FAMILIES else None


def is_bare_name(source: Any) -> bool:
    """Return whether a source is a model name alone: no prefix, no path, and no family of ours."""
    name = without_options(source) if isinstance(source, str) else ""
    return re.fullmatch(r"[\w-]+", name) is not None and family_name(name) is None


def without_options(source: str) -> str:
    """Return a model's name without what follows it: `resnet18` of `resnet18,channels=1@weights.pth`."""
    return re.split("[,@]", source)[0]
