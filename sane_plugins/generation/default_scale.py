"""The scale of initial weights: that of a fresh network, with the same function.

An optimiser such as Adam takes steps of a fixed size, so weights that grew in training learn slowly. A
network whose activations are homogeneous (relu) computes the same when a layer shrinks and its
classifier grows: He et al., "Delving Deep into Rectifiers" (2015), section 2.2, used the other way.
The method: docs/explanation/sane.md, section 12.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_TINY = 1e-12
Hook = Callable[[nn.Module, object, torch.Tensor], torch.Tensor | None]


@torch.no_grad()
def rescale(
    module: nn.Module,
    reference: Mapping[str, torch.Tensor],
    keys: Collection[str],
    classifier: nn.Module | None,
    images: torch.Tensor,
) -> None:
    """Bring weights of linear and convolutional layers, of those `keys`, to the reference's root mean square.

    Biases follow what their layers' outputs shrink by on images (N, C, H, W), and the classifier makes
    up for it: a chain of relu layers computes the same, any other network nearly or not.
    """
    layers = {
        layer: f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd) and f"{name}.weight" in keys
    }
    watched = [*layers, *([classifier] if classifier is not None else [])]
    before: dict[nn.Module, torch.Tensor] = {}
    with _batch_statistics(module):
        _run(module, images, watched, _measure(before))
        for layer, key in layers.items():
            weight = layer.weight
            weight.mul_(_size(reference[key]) / _size(weight).clamp_min(_TINY))
        _run(module, images, watched, _follow(before, classifier))


def _measure(found: dict[nn.Module, torch.Tensor]) -> Hook:
    def hook(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        found.setdefault(layer, _size(_plain(layer, output)))

    return hook


def _follow(before: Mapping[nn.Module, torch.Tensor], classifier: nn.Module | None) -> Hook:
    done: set[nn.Module] = set()

    def hook(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        if layer in done or layer not in before:
            return None
        done.add(layer)
        plain = _plain(layer, output)
        ratio = (_size(plain) / before[layer].clamp_min(_TINY)).clamp_min(_TINY)
        bias = layer.bias if isinstance(layer.bias, torch.Tensor) else None
        shift = output - plain
        if layer is classifier:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            weight.div_(ratio)
            return plain / ratio + shift
        if bias is not None:
            bias.mul_(ratio)
        return plain + shift * ratio

    return hook


def _plain(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Return a layer's output without its bias."""
    bias = layer.bias
    if not isinstance(bias, torch.Tensor):
        return output
    spatial = layer.weight.ndim - 2 if isinstance(layer.weight, torch.Tensor) else 0
    return output - bias.reshape(-1, *[1] * spatial)


def _run(module: nn.Module, images: torch.Tensor, layers: list[nn.Module], hook: Hook) -> None:
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        module(images)
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms use the batch at hand, whose scale follows that of the weights; all else evaluates."""
    modes = {m: m.training for m in module.modules()}
    norms = [m for m in modes if isinstance(m, _BatchNorm)]
    tracked = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
        norm.momentum, norm.num_batches_tracked = 0.0, None  # running statistics stay
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, tracked, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
        for part, mode in modes.items():
            part.training = mode


def _size(x: torch.Tensor) -> torch.Tensor:
    return x.detach().double().pow(2).mean().sqrt().to(x)
