"""Find the classifier of a network, and fit it to new classes in closed form.

The method: docs/explanation/sane.md, section 6.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from sane_plugins.grafting.execution import NORMS
from sane_plugins.grafting.ridge_classifier import RidgeFit, fit_ridge
from sane_plugins.tasks import logits
from sane_plugins.weights import from_module, load_nearest

_BATCH_SIZE = 250
_SOFTNESS_WITHOUT_NORMS = 10.0
_MOST_GROWTH = 400.0  # of fitted weights, in deviations of fresh ones


@torch.no_grad()
def find_classifier(module: nn.Module, images: torch.Tensor) -> nn.Linear | None:
    """Return the linear layer whose output is the network's output for images (N, C, H, W), if any."""
    outputs: dict[nn.Linear, torch.Tensor] = {}

    def store_output(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            outputs[layer] = output

    hooks = [
        layer.register_forward_hook(store_output)
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        network_output = logits(module.eval(), images)
    finally:
        for hook in hooks:
            hook.remove()
    matches = (
        layer
        for layer, output in outputs.items()
        if output.shape == network_output.shape and torch.equal(output, network_output)
    )
    return next(matches, None)


@torch.no_grad()
def fit_classifier(
    module: nn.Module,
    layer: nn.Linear,
    images: torch.Tensor,
    labels: torch.Tensor,
    softness: float = 1.0,
) -> RidgeFit:
    """Fit the layer by ridge regression of one-hot labels (N,) on its inputs; return the fit.

    The network runs in evaluation mode, without dropout: measure the statistics of its norms first, so that
    its features are those that training will start from. The outputs are divided by `softness`.
    """
    fit = fit_ridge(_layer_inputs(module, layer, images), labels, layer.out_features)
    write_classifier(layer, fit, softness)
    return fit


def write_classifier(layer: nn.Linear, fit: RidgeFit, softness: float = 1.0) -> None:
    """Write a fit into the layer, its outputs divided by `softness`, or by more where its weights are huge.

    They are where the layers before it lose nearly all of the signal; steps of training then change the
    outputs by as much.
    """
    fresh = 1 / sqrt(3 * layer.in_features)  # the deviation of torch's default weights
    growth = float(fit.weight.square().mean().sqrt()) / fresh
    softness = max(softness, growth / _MOST_GROWTH)
    fitted = {"weight": fit.weight / softness}
    if layer.bias is not None:
        fitted["bias"] = fit.bias / softness
    # Its weight may be computed from others (weight norm), so it is not simply written.
    load_nearest(layer, from_module(layer).replace(fitted))


def softness_of(module: nn.Module) -> float:
    """Return what the outputs of a network with transferred layers should be divided by.

    Where no norm holds back what a step of Adam does to all layers behind, large outputs diverge at once.
    """
    norms = (*NORMS, _InstanceNorm)
    has_norm = any(isinstance(layer, norms) for layer in module.modules())
    return 1.0 if has_norm else _SOFTNESS_WITHOUT_NORMS


def _layer_inputs(module: nn.Module, layer: nn.Linear, images: torch.Tensor) -> torch.Tensor:
    """Return the layer's inputs (N, F)."""
    with _record_inputs(layer) as recorded:
        module.eval()
        for batch in images.split(_BATCH_SIZE):
            module(batch)
    return torch.cat(recorded)


@contextmanager
def _record_inputs(layer: nn.Linear) -> Iterator[list[torch.Tensor]]:
    recorded: list[torch.Tensor] = []

    def store_inputs(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        recorded.append(inputs[0].flatten(0, -2))

    hook = layer.register_forward_pre_hook(store_inputs)
    try:
        yield recorded
    finally:
        hook.remove()
