"""Bring the task's images to the size and the channels that the network takes, before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sane_plugins.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.cli.initialization.targets import Target
    from sane_plugins.host import Host
    from sane_plugins.tasks import Task

MIXED_SIZE = 64  # pixels; images of several sizes are resized to it where nothing else is asked for
_MOST_RESIZED = 2**28  # values of all images that are enlarged for the network: a GiB
_PATCHES = (1, 8, 14, 16, 32)  # pixels that the size of images must be a multiple of


def with_channels_taken(target: Target) -> Target:
    """Give grey images the number of channels that the network takes."""
    from torch import nn

    first_conv = next((m for m in target.module().modules() if isinstance(m, nn.Conv2d)), None)
    channels = target.task.channels
    if first_conv is None or channels != 1 or first_conv.in_channels == 1:
        return target
    note = (
        f"grey images are repeated to the {first_conv.in_channels} channels that the network takes"
    )
    task = target.task.repeated(first_conv.in_channels)
    return replace(target, task=task, notes=(*target.notes, note))


def with_size_taken(host: Host, target: Target, resize: bool) -> Target:
    """Give images the size that the network takes, where it does not take theirs.

    Raises `UsageError` where they may not be resized.
    """
    from sane_plugins.architectures import find_image_size

    task, module = target.task, target.module()
    size = find_image_size(module, task.channels, len(task.classes), task.size)
    if size in (None, task.size):
        return target  # if something else is wrong, it is told where the network meets the images
    assert size is not None
    smaller = _at_other_size(host, target, module)
    if not resize:
        also = f", or name {smaller}" if smaller else ""
        raise UsageError(
            f"--size {task.size[0]}",
            f"{target.name} does not take images of {_pixels(task.size)} pixels",
            f"it takes {_pixels(size)}",
            f"write --size {size[0]}{also}",
        )
    work = size[0] * size[1] / (task.size[0] * task.size[1])
    note = f"images are resized from {_pixels(task.size)} to the {_pixels(size)} that {target.name} takes"
    if work >= 2:
        note += f", which makes each step some {work:.0f} times as long"
    if smaller:
        note += f"; {smaller} is the same network for images of about their own size"
    task, left_out = _resized(task, size)
    notes = (*target.notes, note, *left_out)
    return replace(target, task=task, notes=notes)


def _resized(task: Task, size: tuple[int, int]) -> tuple[Task, tuple[str, ...]]:
    """Return the task at another size, with the images that memory should hold, and a note on the others."""
    import torch

    most = max(_MOST_RESIZED // (2 * task.channels * size[0] * size[1]), len(task.classes))
    count = len(task.y_train)
    task = task.at_most(most, torch.Generator().manual_seed(0))
    used = f"at that size, {most:,} of {count:,} training images are used"
    return task.resized(size), ((used,) if count > most else ())


def _at_other_size(host: Host, target: Target, module: nn.Module) -> str:
    """Return the name by which a library builds the network for about the images' size; empty for none."""
    from sane_plugins.architectures import find_image_size, takes_image_size
    from sane_plugins.errors import SaneError

    task, name = target.task, target.name
    if not target.is_library or "size=" in name or not takes_image_size(module):
        return ""
    sides = sorted({-(-max(task.size) // patch) * patch for patch in _PATCHES})
    for side in sides:
        architecture, at, weights = name.partition("@")
        other = f"{architecture},size={side}{at}{weights}"
        try:
            built = host.build(other, len(task.classes))
        except SaneError:  # its patches do not divide this size
            continue
        size = (side, side)
        if find_image_size(built, task.channels, len(task.classes), size) == size:
            return other
    return ""


def _pixels(size: tuple[int, int]) -> str:
    """Return height and width as a sentence shows them."""
    return f"{size[0]}x{size[1]}"
