"""Evaluation of a network on a task: predictions, accuracy and cost."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import _pop_mode, _push_mode
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from sane_plugins.errors import TaskError, first_line
from sane_plugins.tasks.task import Task

_BATCH_SIZE = 250


@torch.no_grad()
def accuracy(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the accuracy on images (N, C, H, W) with labels y (N,), in evaluation mode."""
    return int(correct(module, x, y).sum()) / len(y)


@torch.no_grad()
def correct(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return which images are classified correctly, (N,) bool, in evaluation mode.

    Where the largest logit is NaN or infinite nothing is told, so the image is not.
    """
    module.eval()
    outputs = [logits(module, images) for images in x.split(_BATCH_SIZE)]
    predictions = torch.cat([output.argmax(1) for output in outputs])
    tells = torch.cat([output.amax(1).isfinite() for output in outputs])
    return (predictions == y) & tells


def logits(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the network's logits: its output, or the first of several (auxiliary classifiers)."""
    output = module(images)
    return output if isinstance(output, torch.Tensor) else output[0]


class _NoModules:
    """In place of the counter's list of modules, kept by hooks that modules of all threads would call."""

    parents = frozenset({"Global"})


class _Counting(_FlopCounterMode):
    """Counts in the calling thread; the base notes in variables of the process that it is on."""

    def __enter__(self) -> _Counting:
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        _pop_mode()


def forward_flops(module: nn.Module, images: torch.Tensor) -> int:
    """Return the FLOPs of a forward pass on images (N, C, H, W), at least 1."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with _Counting(counter), torch.no_grad():
        module.eval()(images)
    return max(1, int(counter.get_total_flops()))


def require_fit(module: nn.Module, task: Task) -> None:
    """Raise `TaskError` unless the module accepts the task's images and has one output per class."""
    height, width = task.size
    images = f"images of {task.channels} x {height} x {width}"
    try:
        with torch.no_grad():
            shape = tuple(logits(module.eval(), task.x_train[:2]).shape)
    except Exception as error:  # any layer may refuse a shape, each in its own words
        raise TaskError(
            task.name,
            f"the network does not take its {images} ({first_line(error)})",
            f"image size and channels must fit the network, for {len(task.classes)} classes",
            "resize the images with --size, or choose another network",
        ) from error
    if shape != (len(task.x_train[:2]), len(task.classes)):
        raise TaskError(
            task.name,
            f"the network's outputs for its {images} have shape {shape[1:]}",
            f"the task has {len(task.classes)} classes, one output each",
            "build the network for this class count, or give the image size it takes with --size",
        )
