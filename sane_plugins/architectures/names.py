"""The names of our families of networks; light, as the help of commands needs them."""

SMALL_CNN = "small-cnn"  # what every command builds unasked
FAMILIES = ("small_cnn", "wide_cnn", "mlp", "resnet", "vit")


def family_name(name: str) -> str | None:
    """Return the name of a family of ours as zoos write it, for either spelling; None for any other name."""
    found = name.replace("-", "_")
    return found if found in FAMILIES else None
