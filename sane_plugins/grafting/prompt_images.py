"""A task's images as a prompt network reads them: with its own mean, deviation, channels and size."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

from sane_plugins.errors import SourceError, first_line
from sane_plugins.grafting.execution import in_evaluation
from sane_plugins.grafting.prompt_network import Preparation, PromptNetwork
from sane_plugins.tasks import Task

_CHANNELS = (3, 1, 4)  # tried where a network takes other images than the task's


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
