"""Find the classifier of a network, and fit it to new classes in closed form.

The method: docs/explanation/sane.md, section 6.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from sane_plugins.tasks import logits
from sane_plugins.weights import from_module, load_nearest

_BATCH_SIZE = 250
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_LOGIT_FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


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
    module: nn.Module, layer: nn.Linear, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Fit the layer by ridge regression of one-hot labels (N,) on its inputs.

    A regression's outputs lie near 0 and 1; they are multiplied by a factor, so that training starts from
    sensible probabilities. Factor and penalty minimise the cross-entropy on the last fifth of the images,
    fitted to the others; the final fit is to all images.
    """
    features = _layer_inputs(module, layer, images)
    split = max(1, len(labels) * 4 // 5)
    best = (float("inf"), _PENALTIES[0], 1.0)
    for penalty in _PENALTIES:
        weight, bias = _ridge(features[:split], labels[:split], layer.out_features, penalty)
        predictions = features[split:] @ weight.T + bias
        losses = (
            (float(cross_entropy(factor * predictions, labels[split:])), penalty, factor)
            for factor in _LOGIT_FACTORS
        )
        best = min(best, *losses)
    _, penalty, factor = best
    weight, bias = _ridge(features, labels, layer.out_features, penalty)
    fitted = {"weight": factor * weight} | ({} if layer.bias is None else {"bias": factor * bias})
    # Its weight may be computed from others (weight norm), so it is not simply written.
    load_nearest(layer, from_module(layer).replace(fitted))


def _ridge(
    features: torch.Tensor, labels: torch.Tensor, classes: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (C, F) and bias (C,); the penalty is relative to the features' mean variance."""
    targets = one_hot(labels, classes).to(features)
    mean, target_mean = features.mean(0), targets.mean(0)
    x = features - mean
    gram = x.T @ x / len(x)
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    gram += (penalty * gram.diagonal().mean() + 1e-9) * identity
    weight = torch.linalg.solve_ex(gram, x.T @ (targets - target_mean) / len(x)).result.T
    return weight, target_mean - weight @ mean


def _layer_inputs(module: nn.Module, layer: nn.Linear, images: torch.Tensor) -> torch.Tensor:
    """Return the layer's inputs (N, F), in double precision for the linear solve."""
    with _record_inputs(layer) as recorded:
        module.eval()
        for batch in images.split(_BATCH_SIZE):
            module(batch)
    return torch.cat(recorded).double()


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
