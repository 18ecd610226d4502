"""Build timm's networks by name, with any number of classes and channels and any fitting weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.weights.files import open_file
from sane_torchvision.build import parsed, with_weights
from sane_torchvision.load import import_torchvision
from sane_torchvision.surgery import with_channels

_NAMES = "one of timm.list_models() is needed"


def build(source: str, classes: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network of NAME[,classes=N][,channels=N][@FILE], and notes on unfit weights.

    Without weights it is freshly initialised; nothing is fetched. Raises `SourceError` where timm is
    missing, where the name is unknown, and where the weights are of another architecture.
    """
    named, at, weights = source.partition("@")
    name, options = parsed(named, f"timm:{source}")
    classes = options.get("classes", classes)
    builder = _builder(name)
    notes: tuple[str, ...] = ()
    if at:
        graph = open_file(Path(weights))
        if graph is None:
            raise SourceError(
                f"timm:{source}", "these weights are not known", "a file of weights is needed",
                "fetch them with timm and save them with safetensors.torch.save_file",
            )  # fmt: skip
        module, notes = with_weights(builder, f"timm:{name}", graph.state_dict(), classes)
    else:
        module = builder() if classes is None else builder(num_classes=classes)
    if "channels" in options:
        module = with_channels(module, options["channels"], f"timm:{source}")
    return module, notes


def import_timm() -> ModuleType:
    """Return timm, also beside a torchvision whose operators do not load. Raises `SourceError`."""
    if find_spec("timm") is None:
        raise SourceError(
            "timm", "it is not installed", "this network's code comes from it",
            "run pip install 'sane-plugins[timm]'",
        )  # fmt: skip
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parts of torch that it still uses
        return import_module("timm")


def _builder(name: str) -> Callable[..., nn.Module]:
    timm = import_timm()
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        raise SourceError(
            f"timm:{name}", "timm has no such network", _NAMES,
            f"did you mean {' or '.join(close)}" if close else "check the name",
        )  # fmt: skip

    def builder(*, weights: None = None, num_classes: int | None = None) -> nn.Module:  # noqa: ARG001
        options = {} if num_classes is None else {"num_classes": num_classes}
        made: nn.Module = timm.create_model(name, pretrained=False, **options)
        return made

    return builder
