"""A prompt network: trained weights that are lent, what is known of them, and how to run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sane_plugins.display import ShortRepr
from sane_plugins.weights import WeightGraph


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a network's images are prepared: values between 0 and 1, less `mean`, divided by `deviation`.

    `mean` and `deviation` hold a number per channel; `size` is (height, width) in pixels that it was
    trained at.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PromptInfo:
    """What is known of a prompt network: its name, and where its weights come from.

    `task` is what it was trained on, `classes` the names of the classes that it has seen (empty: not
    known), `licence` that of its weights. `preparation` is None where it is not known.
    """

    name: str
    source: str = ""
    task: str = ""
    licence: str = ""
    classes: tuple[str, ...] = ()
    preparation: Preparation | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PromptNetwork(ShortRepr):
    """A trained network that lends its weights.

    `build` returns it as a module with its weights, in evaluation mode, another copy each time; None where
    only its weights are known, so that it cannot run. `notes` say what is taken to be so without being known.
    """

    graph: WeightGraph
    info: PromptInfo
    build: Callable[[], nn.Module] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptOffer:
    """A prompt network that a plugin offers, to be read when it is wanted.

    `load` returns it as a `PromptNetwork`, or what a host opens: a path, a name, a module, a graph. What
    `info` says of it goes before what a file says of itself.
    """

    info: PromptInfo
    load: Callable[[], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedNetwork:
    """A published network that a plugin knows, so that files of its weights are recognised by their content.

    `build` builds it for a number of classes, or, given None, for those of the published weights, whose
    classes and preparation `info` tells. A host builds it by the name under which it is offered. `tensors` is
    the number of its floating-point tensors: told, it is not built to be compared with files of others.
    """

    info: PromptInfo
    build: Callable[[int | None], nn.Module]
    tensors: int | None = None
