"""Networks by timm name: `timm:resnet10t`, `timm:resnet10t,classes=7,channels=1@weights.pth`.

The name alone, `convnext_atto`, is the same where torchvision has no such network, and no file is called so.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.architectures import build_named, is_bare_name, open_named

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.weights import WeightGraph

_PREFIX_AND_BUILDER = ("timm:", "sane_timm.build")


@hookimpl
def sane_open(source: Any) -> WeightGraph | None:
    """Read a timm network. Raises `SourceError` for an unknown name or unfit weights."""
    return open_named(_with_prefix(source), *_PREFIX_AND_BUILDER)


@hookimpl
def sane_build(source: Any, classes: int | None) -> nn.Module | None:
    """Build a timm network with `classes` outputs. Raises `SourceError` where it takes none."""
    return build_named(_with_prefix(source), *_PREFIX_AND_BUILDER, classes)


def _with_prefix(source: Any) -> Any:
    """Return a bare name that timm has, and torchvision has not, with its prefix; others as they are."""
    if not is_bare_name(source) or find_spec("timm") is None:
        return source
    from sane_plugins.architectures import torchvision_has, without_options
    from sane_plugins.formats import exists
    from sane_timm.build import import_timm

    if exists(source) or torchvision_has(source):
        return source
    is_ours = import_timm().is_model(without_options(source))
    return f"{_PREFIX_AND_BUILDER[0]}{source}" if is_ours else source
