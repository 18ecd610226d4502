"""Whether a network runs on a task's images, and can be trained on them: asked before any long work."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.errors import SourceError, TaskError, first_line
from sane_plugins.runtime import drawing_from
from sane_plugins.tasks.scoring import logits
from sane_plugins.tasks.task import Task
from sane_plugins.weights import copy_module, network_errors_told, raised_by_network

_FEW = 2  # images
_TRAINED = 3
_TRAINS = "it is trained on a few images to compare what it may start from"


def require_fit(module: nn.Module, task: Task, name: str = "") -> None:
    """Raise `TaskError` unless the module accepts the task's images and has one output per class.

    `name` is what the error calls the network: by default, its class.
    """
    few = task.x_train[:_FEW]
    try:
        with torch.no_grad():
            shape = tuple(logits(module.eval(), few).shape)
    except (Exception, SystemExit) as error:  # any layer may refuse a shape, each in its own words
        needed = f"it must take those of {task.name}, for {len(task.classes)} classes"
        raise _failed(module, name, error, _images(task), needed, resize=True) from error
    if shape != (len(few), len(task.classes)):
        raise TaskError(
            task.name,
            f"the network's outputs for its {_images(task)} have shape {shape[1:]}",
            f"the task has {len(task.classes)} classes, one output each",
            "build the network for this class count, or give the image size it takes with --size",
        )


def require_trainable(module: nn.Module, task: Task, name: str = "") -> None:
    """Raise `SaneError` unless a copy of the module runs, trains and takes weights as candidates do.

    It runs on one image and on few, in evaluation and in training mode, and backward; the module is not
    changed. Raises what `require_fit` raises, too.
    """
    with network_errors_told():
        copied = copy_module(module)
        require_fit(copied, task, name)
        copied.load_state_dict(copied.state_dict(), strict=False)
    try:
        with torch.no_grad():
            logits(copied, task.x_train[:1])
    except (Exception, SystemExit) as error:
        images = f"one of the {_images(task)}"
        raise _failed(module, name, error, images, "it must take any number of them") from error
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise SourceError(
            name or type(module).__name__,
            "none of its parameters requires gradients",
            _TRAINS,
            "set requires_grad on those that are to be trained",
        )
    x, y = task.x_train[:_TRAINED], task.y_train[:_TRAINED]
    if len(x) < _FEW:
        return  # batch norm cannot train on a single image
    step = "forward"
    try:
        with torch.enable_grad(), drawing_from(torch.Generator().manual_seed(0)):
            loss = cross_entropy(logits(copied.train(), x), y)
            step = "backward pass"
            loss.backward()
    except (Exception, SystemExit) as error:
        images = f"{_images(task)} in training mode"
        raise _failed(module, name, error, images, _TRAINS, step=step) from error


def _failed(
    module: nn.Module,
    name: str,
    error: BaseException,
    images: str,
    needed: str,
    *,
    step: str = "forward",
    resize: bool = False,
) -> TaskError:
    """Return what is said of a network that raised in a step on images."""
    raised = raised_by_network(error)
    ways = [
        *(["resize the images with --size"] if resize else []),
        "choose another network",
        *([raised.way_out] if raised else []),
    ]
    return TaskError(
        name or type(module).__name__,
        f"its {raised.method if raised else step} raised {type(error).__name__}: {first_line(error)}"
        f" on {images}",
        needed,
        ", ".join(ways[:-1]) + f", or {ways[-1]}" if ways[1:] else ways[0],
    )


def _images(task: Task) -> str:
    height, width = task.size
    return f"images of {task.channels} x {height} x {width}"
