"""The classifier of a network: where it is, and a fit of it to new classes in closed form.

The method: docs/explanation/sane.md, section 6.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from sane_plugins.tasks import logits

_BATCH = 250
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@torch.no_grad()
def find_classifier(module: nn.Module, images: torch.Tensor) -> nn.Linear | None:
    """Return the linear layer whose output is the network's answer to images (N, C, H, W), if any."""
    outputs: dict[nn.Linear, torch.Tensor] = {}

    def keep(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            outputs[layer] = output

    hooks = [m.register_forward_hook(keep) for m in module.modules() if isinstance(m, nn.Linear)]
    try:
        answer = logits(module.eval(), images)
    finally:
        for hook in hooks:
            hook.remove()
    same = (m for m, x in outputs.items() if x.shape == answer.shape and torch.equal(x, answer))
    return next(same, None)


@torch.no_grad()
def fit_classifier(
    module: nn.Module, layer: nn.Linear, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Set the layer to the ridge regression of one-hot labels (N,) on what it reads.

    A regression's outputs lie near 0 and 1; they are multiplied by a factor, so that training starts from
    probabilities that mean something. Factor and penalty are those of least cross-entropy on the last
    fifth of the images, when fitted to the others; the fit is then made to all.
    """
    features = _features(module, layer, images)
    first = max(1, len(labels) * 4 // 5)
    best = (float("inf"), _PENALTIES[0], 1.0)
    for penalty in _PENALTIES:
        weight, bias = _ridge(features[:first], labels[:first], layer.out_features, penalty)
        answer = features[first:] @ weight.T + bias
        losses = ((float(cross_entropy(t * answer, labels[first:])), penalty, t) for t in _FACTORS)
        best = min(best, *losses)
    _, penalty, factor = best
    weight, bias = _ridge(features, labels, layer.out_features, penalty)
    layer.weight.copy_(factor * weight)
    if layer.bias is not None:
        layer.bias.copy_(factor * bias)


def _ridge(
    features: torch.Tensor, labels: torch.Tensor, classes: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (C, F) and bias (C,); the penalty is relative to the features' mean variance."""
    targets = one_hot(labels, classes).to(features)
    mean, middle = features.mean(0), targets.mean(0)
    x = features - mean
    gram = x.T @ x / len(x)
    gram += (penalty * gram.diagonal().mean() + 1e-9) * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve_ex(gram, x.T @ (targets - middle) / len(x)).result.T
    return weight, middle - weight @ mean


def _features(module: nn.Module, layer: nn.Linear, images: torch.Tensor) -> torch.Tensor:
    """Return what the layer reads (N, F), in double precision for the solution."""
    with _reading(layer) as found:
        module.eval()
        for batch in images.split(_BATCH):
            module(batch)
    return torch.cat(found).double()


@contextmanager
def _reading(layer: nn.Linear) -> Iterator[list[torch.Tensor]]:
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].flatten(0, -2))

    hook = layer.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
