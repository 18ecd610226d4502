"""A prompt network: trained weights that are lent, what is known of them, and images as it reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from sane_plugins.display import ShortRepr
from sane_plugins.errors import SourceError, first_line
from sane_plugins.grafting.execution import in_evaluation
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph

_CHANNELS = (3, 1, 4)  # tried where a network takes other images than the task's


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


@torch.no_grad()
def prompt_images(
    prompt: PromptNetwork,
    module: nn.Module,
    task: Task,
    count: int | None = None,
    enlarged: int = 1,
) -> torch.Tensor:
    """Return the task's first training images (N, C, H, W), on its device, as a prompt's module reads them.

    They are enlarged so many times, but not beyond the size that it was trained at; where the module does
    not take that, they keep the task's size, or get the one that it was trained at. Where its preparation is
    not known, the images are standardised as the task's are. Raises `SourceError` where the module takes
    none of these.
    """
    images, preparation = task.x_train[:count], prompt.info.preparation
    sizes = [task.size]
    if preparation is not None:
        height, width = (
            max(own, min(enlarged * own, trained))
            for own, trained in zip(task.size, preparation.size, strict=True)
        )
        sizes = [(height, width), task.size, preparation.size]
    counts = (
        dict.fromkeys((task.channels, *_CHANNELS))
        if preparation is None
        else [len(preparation.mean)]
    )
    problem: Exception | None = None
    for size in dict.fromkeys(sizes):
        for channels in counts:
            trial = _prepared(images[:2], task, preparation, channels, size)
            try:
                with in_evaluation(module):
                    module(trial)
            except Exception as error:  # any layer may refuse a shape, each in its own words
                problem = problem or error
            else:
                return _prepared(images, task, preparation, channels, size)
    assert problem is not None
    height, width = task.size
    raise SourceError(
        prompt.info.name,
        f"it does not take images of {task.channels} x {height} x {width} ({first_line(problem)})",
        "a prompt must run on the task's images",
        "resize the images with --size, or leave this prompt out",
    ) from problem


def _prepared(
    images: torch.Tensor,
    task: Task,
    preparation: Preparation | None,
    channels: int,
    size: tuple[int, int],
) -> torch.Tensor:
    if preparation is not None:
        images = images * _column(task.pixel_deviation, images) + _column(task.pixel_mean, images)
    if images.shape[1] != channels:
        grey = images[:, :3].mean(1, keepdim=True) if images.shape[1] > 1 else images
        images = grey.expand(-1, channels, -1, -1)
    if size != tuple(images.shape[2:]):
        images = interpolate(
            images, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    if preparation is not None:
        images = (images - _column(preparation.mean, images)) / _column(
            preparation.deviation, images
        )
    return images.contiguous()


def _column(values: tuple[float, ...], images: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
