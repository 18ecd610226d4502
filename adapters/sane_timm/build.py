"""Build timm's models by name, with any number of classes and channels and any matching weights."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from torch import nn

from sane_plugins.architectures import (
    ModelSpec,
    Notes,
    build_model,
    build_with_weights,
    import_torchvision,
    unknown_model,
)
from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file
from sane_plugins.runtime import without_warnings

_PREFIX = "timm:"
_NAME_NEEDED = "one of timm.list_models() is needed"


def build(source: str, classes: int | None) -> tuple[nn.Module, Notes]:
    """Return the model of NAME[,classes=N][,channels=N][@FILE], and notes on weights that do not match.

    Nothing is downloaded. Raises `SourceError` where timm is missing, where the name is unknown, and where
    the weights are of another architecture.
    """
    return build_model(source, classes, _PREFIX, _find, _load)


def _load(spec: ModelSpec, weights: str, classes: int | None) -> tuple[nn.Module, Notes]:
    """Build a model with the weights in the file after the `@`."""
    graph = open_file(Path(weights))
    if graph is None:
        raise SourceError(
            f"{spec.label}@{weights}",
            "these weights are not known",
            "a file of weights is needed",
            "fetch them with timm and save them with safetensors.torch.save_file",
        )
    return build_with_weights(spec, graph.state_dict(), classes)


def import_timm() -> ModuleType:
    """Import timm, even with a torchvision whose operators do not load. Raises `SourceError`."""
    if find_spec("timm") is None:
        raise SourceError(
            "timm",
            "it is not installed",
            "this network's code comes from it",
            "run pip install 'sane-plugins[timm]'",
        )
    import_torchvision()
    with without_warnings():  # it still uses deprecated parts of torch
        try:
            return import_module("timm")
        except ImportError as error:
            raise SourceError(
                "timm",
                f"it does not import ({error})",
                "one that fits this torch is needed",
                "run pip install --upgrade 'sane-plugins[timm]'",
            ) from error


def _find(name: str) -> ModelSpec:
    timm = import_timm()
    if not timm.is_model(name):
        raise unknown_model("timm", name, timm.list_models(), _NAME_NEEDED)

    def builder(
        *,
        weights: None = None,  # noqa: ARG001
        num_classes: int | None = None,
        img_size: int | None = None,
    ) -> nn.Module:
        given = {"num_classes": num_classes, "img_size": img_size}
        options = {key: value for key, value in given.items() if value is not None}
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return ModelSpec(
        builder=builder,
        label=_PREFIX + name,
        image_size=_image_size(timm, name),
        has_headless_form=True,
    )


def _image_size(timm: ModuleType, name: str) -> int | None:
    """Return the size of the images a model takes. Raises `SourceError` for an unknown tag."""
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise SourceError(
            f"timm:{name}",
            f"timm refuses this name ({str(error).rstrip('.')})",
            _NAME_NEEDED,
            "leave out what follows the dot",
        ) from error
    return config.input_size[-1] if config else None
