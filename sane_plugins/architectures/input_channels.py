"""Give a network another number of input channels."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import nn

from sane_plugins.architectures.dry_run import DryRun, try_out
from sane_plugins.errors import SourceError

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_IMAGES = 3  # channels of the images that networks are made for


def with_channels(
    module: nn.Module, channels: int, source: str, side: int | None = None
) -> tuple[str, ...]:
    """Make the convolutions that read the images read `channels` channels; return notes.

    Their weights are adapted: summed for one channel, which on grey images computes the same as the
    network on images repeated to all channels, and otherwise repeated in turn and scaled, so that
    activations keep their size. `side` is that of images the network takes, in pixels. Raises
    `SourceError` where something else reads the images, and where the network does not run with
    such images as far as before; it must not be used then.
    """
    before = _tried(module, side)
    stems = _stems(module, before)
    if not stems:
        raise _refused(source, channels, "no plain convolution reads the images")
    if before.channels == channels:
        return ()
    notes = _prepare(module, channels)
    for conv in stems:
        conv.in_channels = channels
        conv.weight = nn.Parameter(
            adapted(conv.weight.detach(), channels), requires_grad=conv.weight.requires_grad
        )
    after = try_out(module, channels, before.side)
    # What cannot run to its end without values is to run as far as before.
    if after.output != before.output or (not before.output and after.steps < before.steps):
        raise _refused(source, channels, f"it works on {before.channels} channels elsewhere too")
    return notes


def adapted(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a kernel (out, in, ...) for another number of input channels."""
    count = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    turns = torch.arange(channels, device=weight.device) % count
    return weight[:, turns] * (count / channels)


def _tried(module: nn.Module, side: int | None) -> DryRun:
    """Run the network on colour images, or on such as its first convolution takes."""
    trial = try_out(module, _IMAGES, side)
    first = next((part for part in module.modules() if isinstance(part, _Conv)), None)
    if trial.output or first is None or first.in_channels == _IMAGES:
        return trial
    return try_out(module, first.in_channels, side)


def _stems(module: nn.Module, trial: DryRun) -> list[_Conv]:
    """Return the convolutions that read the images, or none where anything else does."""
    found = []
    for key in trial.readers:
        owner, _, attribute = key.rpartition(".")
        part = module.get_submodule(owner)
        if not isinstance(part, _Conv) or attribute != "weight" or part.groups > 1:
            return []
        if part.in_channels != trial.channels:
            return []
        found.append(part)
    return found


def _prepare(module: nn.Module, channels: int) -> tuple[str, ...]:
    """Let a detection network, which standardises its images itself, do so for other images."""
    notes = []
    part: Any
    for part in module.modules():
        if hasattr(part, "image_mean") and hasattr(part, "image_std"):
            if channels == 1 and max(len({*part.image_mean}), len({*part.image_std})) > 1:
                notes.append("images are standardised with the average of three channels' figures")
            part.image_mean = _per_channel(part.image_mean, channels)
            part.image_std = _per_channel(part.image_std, channels)
    return tuple(notes)


def _per_channel(figures: Any, channels: int) -> list[float]:
    if channels == 1:
        return [fmean(figures)]
    return [figures[i % len(figures)] for i in range(channels)]


def _refused(source: str, channels: int, found: str) -> SourceError:
    return SourceError(
        source,
        f"{channels} input channels were asked for, and {found}",
        "a network whose first convolution can be exchanged is needed",
        "repeat the images to its own number of channels",
    )
