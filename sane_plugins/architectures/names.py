"""The names of our families of networks; light, as the help of commands needs them."""

import re
from typing import Any

SMALL_CNN = "small-cnn"  # what every command builds unasked
FAMILIES = ("small_cnn", "wide_cnn", "mlp", "resnet", "vit")


def family_name(name: str) -> str | None:
    """Return the name of a family of ours as zoos write it, for either spelling; None for any other name."""
    found = name.replace("-", "_")
    return found if found in FAMILIES else None


def is_bare_name(source: Any) -> bool:
    """Tell whether a source is a network's name alone: no prefix, no path, and no family of ours."""
    name = re.split("[,@]", source)[0] if isinstance(source, str) else ""
    return re.fullmatch(r"[\w-]+", name) is not None and family_name(name) is None
