"""Build torchvision's models by name, with any number of classes and any matching weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from sane_torchvision.published import fetch, published_weights

_PREFIX = "torchvision:"


def build(source: str, classes: int | None) -> tuple[nn.Module, Notes]:
    """Return the model of NAME[,classes=N][,channels=N][@WEIGHTS], and notes on weights that do not match.

    With weights of another class count the classifier stays as initialised. Raises `SourceError` where the
    name is unknown, where it takes no class count, and where the weights are of another architecture.
    """
    return build_model(source, classes, _PREFIX, find, _load)


def find(name: str) -> ModelSpec:
    """Return how a network is built. Raises `SourceError` for an unknown name."""
    models = import_torchvision().models
    names = models.list_models()
    if name not in names:
        needed = "one of torchvision.models.list_models() is needed"
        raise unknown_model("torchvision", name, names, needed)
    return ModelSpec(builder=models.get_model_builder(name), label=_PREFIX + name)


def _load(spec: ModelSpec, weights: str, classes: int | None) -> tuple[nn.Module, Notes]:
    """Build a model with the weights after the `@`: published ones by name, or a file."""
    published = published_weights(spec.label.removeprefix(_PREFIX))
    if weights in published:
        return _load_published(spec, published[weights], classes)
    graph = open_file(Path(weights))
    if graph is None:
        raise SourceError(
            f"{spec.label}@{weights}",
            "these weights are not known",
            "a file of weights, or the name of published weights is needed",
            f"try {', '.join(published)}" if published else "name a file",
        )
    return build_with_weights(spec, graph.state_dict(), classes)


def _load_published(spec: ModelSpec, weights: Any, classes: int | None) -> tuple[nn.Module, Notes]:
    module, arguments, notes = fetch(spec, weights)
    if classes is None:
        return module, notes
    spec = ModelSpec(builder=spec.builder, label=spec.label, arguments=arguments)
    module, more_notes = build_with_weights(spec, module.state_dict(), classes)
    return module, (*notes, *more_notes)
