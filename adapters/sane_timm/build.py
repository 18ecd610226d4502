"""Build timm's networks by name, with any number of classes and channels and any fitting weights."""

from __future__ import annotations

import logging
import warnings
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from torch import nn

from sane_plugins.architectures import (
    ModelSpec,
    Notes,
    import_torchvision,
    parse_name,
    with_channels,
    with_weights,
)
from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file

_log = logging.getLogger(__name__)
_NAMES = "one of timm.list_models() is needed"


def build(source: str, classes: int | None) -> tuple[nn.Module, Notes]:
    """Return the network of NAME[,classes=N][,channels=N][@FILE], and notes on unfit weights.

    Without weights it is freshly initialised; nothing is fetched. Raises `SourceError` where timm is
    missing, where the name is unknown, and where the weights are of another architecture.
    """
    named, at, weights = source.partition("@")
    name, wanted, channels = parse_name(named, classes, f"timm:{source}")
    recipe = _recipe(name)
    module, notes = _given(recipe, weights, wanted) if at else (recipe.build(wanted), ())
    if channels is not None:
        notes += with_channels(module, channels, f"timm:{source}", recipe.side)
    for note in notes:
        _log.warning("timm:%s: %s", source, note)
    return module, notes


def _given(recipe: ModelSpec, weights: str, classes: int | None) -> tuple[nn.Module, Notes]:
    graph = open_file(Path(weights))
    if graph is None:
        raise SourceError(
            f"{recipe.label}@{weights}",
            "these weights are not known",
            "a file of weights is needed",
            "fetch them with timm and save them with safetensors.torch.save_file",
        )
    return with_weights(recipe, graph.state_dict(), classes)


def import_timm() -> ModuleType:
    """Return timm, also beside a torchvision whose operators do not load. Raises `SourceError`."""
    if find_spec("timm") is None:
        raise SourceError(
            "timm",
            "it is not installed",
            "this network's code comes from it",
            "run pip install 'sane-plugins[timm]'",
        )
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parts of torch that it still uses
        try:
            return import_module("timm")
        except ImportError as error:
            raise SourceError(
                "timm",
                f"it does not import ({error})",
                "one that fits this torch is needed",
                "run pip install --upgrade 'sane-plugins[timm]'",
            ) from error


def _recipe(name: str) -> ModelSpec:
    timm = import_timm()
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        raise SourceError(
            f"timm:{name}",
            "timm has no such network",
            _NAMES,
            f"did you mean {' or '.join(close)}" if close else "check the name",
        )

    def builder(*, weights: None = None, num_classes: int | None = None) -> nn.Module:  # noqa: ARG001
        options = {} if num_classes is None else {"num_classes": num_classes}
        made: nn.Module = timm.create_model(name, pretrained=False, **options)
        return made

    return ModelSpec(builder=builder, label=f"timm:{name}", side=_side(timm, name))


def _side(timm: ModuleType, name: str) -> int | None:
    """Return the side of the images a network takes. Raises `SourceError` for an unknown tag."""
    try:
        settings = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise SourceError(
            f"timm:{name}",
            f"timm refuses this name ({str(error).rstrip('.')})",
            _NAMES,
            "leave out what follows the dot",
        ) from error
    return settings.input_size[-1] if settings else None
