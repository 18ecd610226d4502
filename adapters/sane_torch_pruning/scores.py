"""Scores of channels: from a few task images, with a learned border of these, and from latents of a SANE.

None of them is a default: benchmarks/importances.py says what each measured beside Torch-Pruning's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.autoencoder import embedded_sane, encode
from sane_plugins.weights import from_module

_LAYERS = (nn.Conv2d, nn.Linear)
_BATCH = 32
Scores = dict[nn.Module, torch.Tensor]
_Change = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def fisher_scores(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor | None = None
) -> Scores:
    """Return how much the loss depends on each channel that a layer reads, by layer (C,).

    The mean over images (N, C, H, W) of the squared derivative by a factor on the channel: the Fisher
    information of that factor (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning",
    2018). Without labels (N,) the network's own answers serve. The module is not changed.
    """
    scores: Scores = {}
    for x, y in _batches(module, images, labels):
        factors: Scores = {}

        def scaled(layer: nn.Module, read: torch.Tensor, to: Scores = factors) -> torch.Tensor:
            factor = to.setdefault(layer, read.new_ones(read.shape[:2], requires_grad=True))
            return read * factor.view(*factor.shape, *[1] * (read.ndim - 2))

        with _reading(module, scaled), torch.enable_grad():
            loss = cross_entropy(module(x), y, reduction="sum")
            gradients = torch.autograd.grad(loss, [*factors.values()])
        for layer, gradient in zip(factors, gradients, strict=True):
            scores[layer] = scores.get(layer, 0.0) + gradient.square().sum(0) / len(images)
    return scores


def border_scores(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    width: int = 4,
    steps: int = 30,
    penalty: float = 0.05,
    seed: int = 0,
) -> Scores:
    """Return factors on the channels that layers read, learned together with a border of the images, (C,).

    The outer `width` pixels of all images (N, C, H, W) get a learned addition, a visual prompt; factors begin
    at 1 and pay `penalty` for their mean; weights are frozen. After the joint learning of prompts and
    subnetworks of VPNs. Adam, 0.02, `steps` of 64 images. The module is not changed.
    """
    rng = torch.Generator().manual_seed(seed)
    border = torch.zeros_like(images[:1], requires_grad=True)
    frame = torch.ones_like(border)
    frame[..., width:-width, width:-width] = 0
    factors: Scores = {}

    def scaled(layer: nn.Module, read: torch.Tensor) -> torch.Tensor:
        factor = factors.setdefault(layer, read.new_ones(read.shape[1], requires_grad=True))
        return read * factor.view(-1, *[1] * (read.ndim - 2))

    if labels is None:
        labels = torch.cat([y for _, y in _batches(module, images, None)])
    with _reading(module, scaled), torch.enable_grad():
        module(images[:2])  # makes the factors
        optimizer = torch.optim.Adam([border, *factors.values()], 0.02)
        for _ in range(steps):
            chosen = torch.randperm(len(images), generator=rng)[:64]
            loss = cross_entropy(module(images[chosen] + frame * border), labels[chosen])
            loss = loss + penalty * torch.cat([x.abs() for x in factors.values()]).mean()
            wanted = [border, *factors.values()]
            for value, gradient in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
                value.grad = gradient
            optimizer.step()
    return {layer: factor.detach().abs() for layer, factor in factors.items()}


@torch.no_grad()
def latent_scores(module: nn.Module) -> Scores:
    """Return how far the latents of each channel that a layer writes are from their mean, by layer (C,).

    The root mean square over the channel's tokens, with the SANE that ships. It needs no image.
    """
    graph, sane = from_module(module), embedded_sane()
    latents = encode(sane, graph).values
    layout = graph.token_layout(sane.config.token_width)
    layers = {f"{name}.weight": x for name, x in module.named_modules() if isinstance(x, _LAYERS)}
    scores: Scores = {}
    for slot, (start, stop) in zip(layout.slots, layout.spans, strict=True):
        layer = layers.get(slot.weight.key)
        if layer is not None and slot.rows == len(layer.weight):
            rows = latents[start:stop].reshape(slot.rows, -1, latents.shape[-1])
            scores[layer] = (rows - rows.mean(0)).square().mean((1, 2)).sqrt()
    return scores


@contextmanager
def _reading(module: nn.Module, change: _Change) -> Iterator[None]:
    """Change what convolutions and linear layers read within the block, in evaluation mode."""
    modes = {part: part.training for part in module.modules()}

    def before(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (change(layer, inputs[0]), *inputs[1:])

    hooks = [part.register_forward_pre_hook(before) for part in modes if isinstance(part, _LAYERS)]
    module.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes.items():
            part.training = mode


def _batches(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    told = labels.split(_BATCH) if labels is not None else [None] * -(-len(images) // _BATCH)
    for x, y in zip(images.split(_BATCH), told, strict=True):
        if y is None:
            with torch.no_grad(), _reading(module, lambda _, read: read):
                y = module(x).argmax(1)
        yield x, y
