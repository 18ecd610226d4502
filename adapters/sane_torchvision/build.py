"""Build torchvision's networks by name, with any number of classes and any fitting weights."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from sane_plugins.architectures import (
    ModelSpec,
    Notes,
    import_torchvision,
    own,
    parse_name,
    with_channels,
    with_weights,
)
from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file
from sane_torchvision.published import fetched, of_name

_log = logging.getLogger(__name__)


def build(source: str, classes: int | None) -> tuple[nn.Module, Notes]:
    """Return the network of NAME[,classes=N][,channels=N][@WEIGHTS], and notes on unfit weights.

    Without weights it is freshly initialised with torch's global generator. With weights of another
    class count the classifier stays fresh. Raises `SourceError` where the name is unknown, where it
    takes no class count, and where the weights are of another architecture.
    """
    named, at, weights = source.partition("@")
    name, wanted, channels = parse_name(named, classes, f"torchvision:{source}")
    recipe = _recipe(name)
    module, notes = _given(recipe, name, weights, wanted) if at else (recipe.build(wanted), ())
    if channels is not None:
        notes += with_channels(module, channels, f"torchvision:{source}")
    for note in notes:
        _log.warning("torchvision:%s: %s", source, note)
    return module, notes


def _recipe(name: str) -> ModelSpec:
    models = import_torchvision().models
    names = models.list_models()
    if name in names:
        return ModelSpec(builder=models.get_model_builder(name), label=f"torchvision:{name}")
    close = get_close_matches(name, names, n=3)
    raise SourceError(
        f"torchvision:{name}",
        "torchvision has no such network",
        "one of torchvision.models.list_models() is needed",
        f"did you mean {' or '.join(close)}" if close else "check the name",
    )


def _given(
    recipe: ModelSpec, name: str, weights: str, classes: int | None
) -> tuple[nn.Module, Notes]:
    """Build with the weights after the `@`: published ones by name, or those of a file."""
    known = of_name(name)
    if weights in known:
        return _published(recipe, known[weights], classes)
    graph = open_file(Path(weights))
    if graph is None:
        raise SourceError(
            f"{recipe.label}@{weights}",
            "these weights are not known",
            "a file of weights, or the name of published weights is needed",
            f"try {', '.join(known)}" if known else "name a file",
        )
    return with_weights(recipe, graph.state_dict(), classes)


def _published(recipe: ModelSpec, weights: Any, classes: int | None) -> tuple[nn.Module, Notes]:
    module, fixed, notes = fetched(recipe, weights)
    if classes is None:
        return module, notes
    changed = ModelSpec(builder=recipe.builder, label=recipe.label, fixed=fixed)
    module, more = with_weights(changed, own(module), classes)
    return module, (*notes, *more)
