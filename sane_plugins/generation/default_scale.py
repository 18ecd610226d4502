"""Rescale weights to the scale of a fresh network, keeping the function they compute.

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

_EPSILON = 1e-12
ForwardHook = Callable[[nn.Module, object, torch.Tensor], torch.Tensor | None]


@torch.no_grad()
def rescale(
    module: nn.Module,
    reference: Mapping[str, torch.Tensor],
    keys: Collection[str],
    classifier: nn.Module | None,
    images: torch.Tensor,
) -> None:
    """Rescale linear and convolutional weights among `keys` to the root mean square of the reference.

    Biases are scaled by the measured ratio of their layers' outputs on images (N, C, H, W), and the
    classifier compensates: a chain of relu layers computes the same, any other network approximately at best.
    """
    layers = {
        layer: f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd) and f"{name}.weight" in keys
    }
    hooked_layers = [*layers, *([classifier] if classifier is not None else [])]
    rms_before: dict[nn.Module, torch.Tensor] = {}
    with _batch_statistics(module):
        _run_with_hook(module, images, hooked_layers, _record_rms(rms_before))
        for layer, key in layers.items():
            weight = layer.weight
            weight.mul_(_rms(reference[key]) / _rms(weight).clamp_min(_EPSILON))
        _run_with_hook(module, images, hooked_layers, _rescale_biases(rms_before, classifier))


def _record_rms(rms_by_layer: dict[nn.Module, torch.Tensor]) -> ForwardHook:
    def hook(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        rms_by_layer.setdefault(layer, _rms(_without_bias(layer, output)))

    return hook


def _rescale_biases(
    rms_before: Mapping[nn.Module, torch.Tensor], classifier: nn.Module | None
) -> ForwardHook:
    handled: set[nn.Module] = set()

    def hook(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        if layer in handled or layer not in rms_before:
            return None
        handled.add(layer)
        unbiased = _without_bias(layer, output)
        ratio = (_rms(unbiased) / rms_before[layer].clamp_min(_EPSILON)).clamp_min(_EPSILON)
        bias = layer.bias if isinstance(layer.bias, torch.Tensor) else None
        shift = output - unbiased
        if layer is classifier:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            weight.div_(ratio)
            return unbiased / ratio + shift
        if bias is not None:
            bias.mul_(ratio)
        return unbiased + shift * ratio

    return hook


def _without_bias(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Return a layer's output without its bias."""
    bias = layer.bias
    if not isinstance(bias, torch.Tensor):
        return output
    spatial = layer.weight.ndim - 2 if isinstance(layer.weight, torch.Tensor) else 0
    return output - bias.reshape(-1, *[1] * spatial)


def _run_with_hook(
    module: nn.Module, images: torch.Tensor, layers: list[nn.Module], hook: ForwardHook
) -> None:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _batch_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by batch statistics, which follow the scale of the weights; all other layers evaluate."""
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
        for child, mode in modes.items():
            child.training = mode


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.detach().double().pow(2).mean().sqrt().to(x)
