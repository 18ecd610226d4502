"""Networks by torchvision name: `torchvision:resnet18`, `torchvision:resnet18@weights.pth`.

A weight file follows the `@`, or the name of published weights, such as DEFAULT; without it the network is
freshly initialised, always with seed 0 when it is a source. `torchvision:resnet18,classes=7,channels=1` has
another class count and input channels. The name alone, `resnet18`, is the same where no file is called so.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.architectures import build_named, is_bare_name, open_named

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.weights import WeightGraph

_PREFIX_AND_BUILDER = ("torchvision:", "sane_torchvision.build")


@hookimpl
def sane_open(source: Any) -> WeightGraph | None:
    """Read a torchvision network. Raises `SourceError` for an unknown name or unfit weights."""
    return open_named(_with_prefix(source), *_PREFIX_AND_BUILDER)


@hookimpl
def sane_build(source: Any, classes: int | None) -> nn.Module | None:
    """Build a torchvision network with `classes` outputs. Raises `SourceError` where it takes none."""
    return build_named(_with_prefix(source), *_PREFIX_AND_BUILDER, classes)


def _with_prefix(source: Any) -> Any:
    """Return a bare name of torchvision's with its prefix, and any other source as it is."""
    if not is_bare_name(source):
        return source
    from sane_plugins.architectures import torchvision_has
    from sane_plugins.formats import exists

    is_ours = not exists(source) and torchvision_has(source)
    return f"{_PREFIX_AND_BUILDER[0]}{source}" if is_ours else source


def import_torchvision() -> ModuleType:
    """Return the torchvision module; see `sane_plugins.architectures.import_torchvision`."""
    from sane_plugins import architectures

    return architectures.import_torchvision()
