"""Change the number of input channels of a network."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import nn

from sane_plugins.architectures.dry_run import DryRun, run_on_meta
from sane_plugins.errors import SourceError

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_DEFAULT_CHANNELS = 3  # colour images


def set_input_channels(
    module: nn.Module, channels: int, source: str, image_size: int | None = None
) -> tuple[str, ...]:
    """Change the first convolutions to `channels` input channels, in place; return notes.

    Their weights are adapted: summed for one channel, which on grey images computes the same as the
    network on images repeated to all channels, and otherwise repeated in turn and scaled, so that
    activations keep their scale. `image_size` is in pixels. Raises
    `SourceError` where something else reads the images, and where the network does not run with
    such images as far as before; it must not be used then.
    """
    before = _run_on_default_images(module, image_size)
    convolutions = _first_convolutions(module, before)
    if not convolutions:
        raise _unsupported(source, channels, "no plain convolution reads the images")
    if before.channels == channels:
        return ()
    notes = _set_normalization(module, channels)
    for conv in convolutions:
        conv.in_channels = channels
        conv.weight = nn.Parameter(
            adapt_kernel(conv.weight.detach(), channels), requires_grad=conv.weight.requires_grad
        )
    after = run_on_meta(module, channels, before.image_size)
    # A network that cannot finish on meta tensors must get as far as before.
    if after.output != before.output or (not before.output and after.steps < before.steps):
        raise _unsupported(
            source, channels, f"it works on {before.channels} channels elsewhere too"
        )
    return notes


def adapt_kernel(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a kernel (out, in, ...) for another number of input channels."""
    count = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    indices = torch.arange(channels, device=weight.device) % count
    return weight[:, indices] * (count / channels)


def _run_on_default_images(module: nn.Module, image_size: int | None) -> DryRun:
    """Run the network on colour images, or on images of as many channels as its first convolution takes."""
    run = run_on_meta(module, _DEFAULT_CHANNELS, image_size)
    first = next((part for part in module.modules() if isinstance(part, _Conv)), None)
    if run.output or first is None or first.in_channels == _DEFAULT_CHANNELS:
        return run
    return run_on_meta(module, first.in_channels, image_size)


def _first_convolutions(module: nn.Module, run: DryRun) -> list[_Conv]:
    """Return the convolutions that read the images; empty if any other layer reads them too."""
    convolutions: list[_Conv] = []
    for key in run.readers:
        owner, _, attribute = key.rpartition(".")
        part = module.get_submodule(owner)
        if not isinstance(part, _Conv) or attribute != "weight" or part.groups > 1:
            return []
        if part.in_channels != run.channels:
            return []
        convolutions.append(part)
    return convolutions


def _set_normalization(module: nn.Module, channels: int) -> tuple[str, ...]:
    """Change the mean and standard deviation of a detection network, which standardises images itself."""
    notes = []
    part: Any
    for part in module.modules():
        if hasattr(part, "image_mean") and hasattr(part, "image_std"):
            if channels == 1 and max(len({*part.image_mean}), len({*part.image_std})) > 1:
                notes.append("images are standardised with the average of three channels' figures")
            part.image_mean = _adapt_statistics(part.image_mean, channels)
            part.image_std = _adapt_statistics(part.image_std, channels)
    return tuple(notes)


def _adapt_statistics(statistics: Any, channels: int) -> list[float]:
    if channels == 1:
        return [fmean(statistics)]
    return [statistics[i % len(statistics)] for i in range(channels)]


def _unsupported(source: str, channels: int, reason: str) -> SourceError:
    return SourceError(
        source,
        f"{channels} input channels were asked for, and {reason}",
        "a network whose first convolution can be exchanged is needed",
        "repeat the images to its own number of channels",
    )
