"""Give a network another number of input channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.weights.modules import from_module

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def with_channels(module: nn.Module, channels: int, source: str) -> nn.Module:
    """Exchange the convolutions that read the images for such of `channels` inputs.

    Their weights are adapted: summed for one channel, which on grey images computes the same as the
    network on images repeated to all channels, and otherwise repeated in turn and scaled, so that
    activations keep their size. Raises `SourceError` where no such convolution is found, and where
    the network prepares images of a fixed number of channels itself.
    """
    stems = list(_stems(module))
    if not stems or any(conv.groups > 1 for _, conv in stems):
        raise _refused(source, channels, "no plain convolution that reads the images was found")
    if any(hasattr(part, "image_mean") for part in module.modules()):
        raise _refused(source, channels, "it prepares its images itself, with three channels")
    for name, conv in stems:
        if conv.in_channels != channels:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, _widened(conv, channels))
    return module


def adapted(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a kernel (out, in, ...) for another number of input channels."""
    count = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    turns = torch.arange(channels, device=weight.device) % count
    return weight[:, turns] * (count / channels)


def _stems(module: nn.Module) -> Iterator[tuple[str, _Conv]]:
    """Yield the convolutions that read an input; where topology is missing, the first of the network."""
    graph = from_module(module)
    layers = {layer.name: layer for layer in graph.layers}
    convs = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    found: dict[str, None] = {}
    for layer in graph.layers:
        name = layer.name.partition("#")[0]
        open_ = list(layer.inputs) if name in convs else []
        while open_:
            read = layers[open_.pop()]
            if read.kind == "input":
                found[name] = None
            elif not read.params:
                open_ += read.inputs
    names = list(found) or ([] if graph.has_topology else list(convs)[:1])
    yield from ((name, convs[name]) for name in names)


def _widened(conv: _Conv, channels: int) -> _Conv:
    kind = type(conv)
    made = kind(
        channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None, padding_mode=conv.padding_mode,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        made.weight.copy_(adapted(conv.weight, channels))
        if conv.bias is not None and made.bias is not None:
            made.bias.copy_(conv.bias)
    return made.train(conv.training)


def _refused(source: str, channels: int, found: str) -> SourceError:
    return SourceError(
        source, f"{channels} input channels were asked for, and {found}",
        "a network whose first convolution can be exchanged is needed",
        "repeat the images to its own number of channels",
    )  # fmt: skip
