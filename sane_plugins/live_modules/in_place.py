"""Initialise a module of a torch program in place, as the functions of `torch.nn.init` do.

The method: docs/explanation/sane.md, sections 6.8 and 16.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sane_plugins.arguments import require_type
from sane_plugins.errors import SaneError, TaskError
from sane_plugins.grafting import PromptNetwork, prompt_images
from sane_plugins.host import Host
from sane_plugins.initialize import InitializeOptions
from sane_plugins.prompts import run_as_wider
from sane_plugins.tasks import Task, logits
from sane_plugins.weights import copy_module, load_nearest

if TYPE_CHECKING:
    from sane_plugins.initialize import Initialization

Images = torch.Tensor
TaskOrImages = Task | tuple[Images, torch.Tensor] | Images
_BUDGET = 45.0  # seconds, as that of sane-init
_BATCH = 64


def initialize_(
    module: nn.Module,
    task_or_images: TaskOrImages,
    prompts: Sequence[Any] = (),
    options: InitializeOptions | None = None,
    host: Host | None = None,
) -> Initialization:
    """Initialise a module in place for a task, and return what was chosen and why.

    `task_or_images` are a `Task`, images (N, C, H, W) with labels (N,), or images alone, as the module reads
    them; of images alone the first prompt that runs tells the labels. The weights that the module has are a
    candidate, so a module that was pruned is started anew only by what does better. With `prompts` that run
    nothing is trained; without, candidates are compared by short training, in 45 seconds of an idle machine;
    `options` say otherwise. Modes, gradients, devices and torch's random numbers stay as they are. Make the
    optimizer afterwards. Raises `TaskError` where images or labels do not fit the module, and what
    `Host.initialize` raises; the module is as it was then.
    """
    require_type("initialize_, module", module, nn.Module, way_out="give the module itself")
    require_type("initialize_, prompts", prompts, list, tuple, way_out="give a list of prompts")
    host = host or Host.installed()
    own = copy_module(module).cpu()
    images = _images(task_or_images)
    networks = [run_as_wider(host.prompt_network(x), own, images) for x in prompts]
    task = _task(task_or_images, own, networks)
    if options is None:
        is_run = any(network.build is not None for network in networks)
        options = InitializeOptions(budget=_BUDGET, scored=not is_run, device=_device(module))
    result = host.initialize(own, task, networks, options)
    load_nearest(module, result.graph)
    told = (text for network in networks for text in network.notes if text not in result.notes)
    return replace(result, notes=(*told, *result.notes))


def _images(given: Any) -> Images:
    if isinstance(given, Task):
        return given.x_train
    images: Images = given[0] if isinstance(given, tuple) and len(given) == 2 else given
    require_type(
        "initialize_, task_or_images",
        images,
        torch.Tensor,
        way_out="give a Task, a pair (images, labels), or images",
    )
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise TaskError(
            "initialize_, task_or_images",
            f"a tensor of {tuple(images.shape)}, {images.dtype}",
            "images (N, C, H, W) of floating-point values are needed",
            "give them as the module reads them",
        )
    return images.detach().float().cpu()


@torch.no_grad()
def _task(given: TaskOrImages, module: nn.Module, networks: Sequence[PromptNetwork]) -> Task:
    """Return the task of what was given; labels of images alone are what a prompt predicts."""
    if isinstance(given, Task):
        return given
    images = _images(given)
    classes = logits(copy_module(module).eval(), images[:2]).shape[1]
    task = Task(
        name="images",
        x_train=images,
        y_train=torch.zeros(len(images), dtype=torch.int64),
        x_test=images[:0],
        y_test=torch.zeros(0, dtype=torch.int64),
        classes=tuple(map(str, range(classes))),
    )
    labels = given[1] if isinstance(given, tuple) else _predicted(task, networks)
    if not isinstance(labels, torch.Tensor) or labels.shape != images.shape[:1]:
        raise TaskError(
            "initialize_, labels",
            f"{tuple(getattr(labels, 'shape', ()))} for {len(images)} images",
            "a tensor (N,) of a number for each image is needed",
            "give (images, labels)",
        )
    labels = labels.detach().cpu().long()
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise TaskError(
            "initialize_, labels",
            f"they go from {int(labels.min())} to {int(labels.max())}",
            f"the module has {classes} outputs",
            f"number the classes from 0 to {classes - 1}",
        )
    return replace(task, y_train=labels)


def _predicted(task: Task, networks: Sequence[PromptNetwork]) -> torch.Tensor:
    for network in networks:
        if network.build is None:
            continue
        module = network.build().eval()
        try:
            images = prompt_images(network, module, task)
        except SaneError:
            continue
        outputs = torch.cat([logits(module, batch) for batch in images.split(_BATCH)])
        if outputs.shape[1] == len(task.classes):
            return outputs.argmax(1)
    raise TaskError(
        "initialize_, task_or_images",
        "images without labels",
        f"no prompt runs that tells {len(task.classes)} classes apart",
        "give (images, labels), or the network that this one was pruned from as a prompt",
    )


def _device(module: nn.Module) -> str:
    return str(next((p.device for p in module.parameters()), torch.device("cpu")))
