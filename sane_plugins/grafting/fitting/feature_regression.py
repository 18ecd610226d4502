"""Fit the layers of a network, one by one in the order of execution, to a trained network's features.

The method: docs/explanation/sane.md, section 16.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sane_plugins.grafting.batchnorm import has_statistics, norms_in_training_mode
from sane_plugins.grafting.execution import in_evaluation
from sane_plugins.grafting.fitting.layer_fit import LayerFit
from sane_plugins.grafting.fitting.patches import at_positions, grid_of, read_patches, write_weight
from sane_plugins.grafting.fitting.residual_sum import CallWatch, ResidualSum
from sane_plugins.grafting.fitting.ridge_layers import fit_around
from sane_plugins.grafting.fitting.source_features import (
    FeatureRequest,
    PreparedNetwork,
    source_features,
)

_POSITIONS = 8192  # at most so many positions of a layer are fitted to
_FEATURE_VALUES = 2**27  # single precision numbers of the source's features that are kept
_PATCH_VALUES = 2**26  # and of one layer's input patches
_LEAST_POSITIONS = 1024
_SILENT = 0.1  # of the variance that is made, less than which is wanted


@torch.no_grad()
def regress_features(
    target: PreparedNetwork,
    source: PreparedNetwork,
    fits: Sequence[LayerFit],
    penalties: Sequence[float],
    rng: torch.Generator,
) -> dict[str, float]:
    """Fit the target's layers in place; return the share of variance that each explains, by its name.

    Both networks' images are the same, prepared for each. The source runs in evaluation mode. The target
    runs once, its batch norms alone in training mode, and each layer is fitted to what reaches it then, and
    the scale and shift of the norm behind it to what it then makes. Statistics of the norms are those of that
    run.
    """
    images = target.images
    fits = [*fits, *_shortcut_fits(fits, target.sums)]
    grids = _grids(target.module, images[:2], [fit.layer for fit in fits])
    known = _grids(source.module, source.images[:2], [fit.source for fit in fits])
    fits = [fit for fit in fits if fit.layer in grids and fit.source in known]
    positions = _positions(fits, grids, len(images), images.device, rng)
    requests = {
        fit.layer: FeatureRequest(
            layer=fit.source,
            channels=fit.channels.to(images.device),
            grid=grids[fit.layer],
            positions=positions[grids[fit.layer]],
            activation=fit.activation,
        )
        for fit in fits
    }
    features = source_features(source, requests)
    run = _FittingRun(target, fits, features, positions, grids, penalties)
    with norms_in_training_mode(target.module):
        return run.run()


class _AllFittedError(Exception):
    """Ends a pass behind the last layer that is fitted, where no norm measures statistics in it."""


class _FittingRun:
    """One forward pass in which every layer is fitted before it acts."""

    def __init__(
        self,
        target: PreparedNetwork,
        fits: Sequence[LayerFit],
        features: dict[str, torch.Tensor],
        positions: dict[tuple[int, int], torch.Tensor],
        grids: dict[str, tuple[int, int]],
        penalties: Sequence[float],
    ) -> None:
        self._target, self._fits, self._features = target, fits, features
        self._positions, self._grids, self._penalties = positions, grids, penalties
        self._modules = dict(target.module.named_modules())
        self._sums = {x.layer: x for x in target.sums}
        self._rests: dict[str, torch.Tensor] = {}
        self._means: dict[str, torch.Tensor] = {}
        self._wanted: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._written: set[int] = set()
        self._explained: dict[str, float] = {}
        self._has_statistics = has_statistics(target.module)

    def run(self) -> dict[str, float]:
        """Run, and return the share of variance that each layer explains."""
        by_rest: dict[int, list[ResidualSum]] = {}
        for fit in self._fits:
            if (found := self._sums.get(fit.layer)) is not None:
                by_rest.setdefault(found.rest, []).append(found)
        watch = CallWatch({call: self._receiver(found) for call, found in by_rest.items()})
        with ExitStack() as stack:
            for fit in self._fits:
                layer = self._modules[fit.layer]
                before = layer.register_forward_pre_hook(self._before(fit, watch))
                after = layer.register_forward_hook(self._after(fit, watch))
                stack.callback(before.remove)
                stack.callback(after.remove)
                if fit.layer in self._target.token_norms:
                    norm = self._modules[self._target.token_norms[fit.layer]]
                    hook = norm.register_forward_pre_hook(self._before_norm(fit, watch))
                    stack.callback(hook.remove)
            stack.enter_context(watch)
            with suppress(_AllFittedError):
                self._target.module(self._target.images)
        return self._explained

    def _receiver(self, sums: Sequence[ResidualSum]) -> Callable[[torch.Tensor], None]:
        def receive(values: torch.Tensor) -> None:
            for found in sums:
                positions = self._positions[self._grids[found.layer]]
                self._rests[found.layer] = at_positions(
                    values, positions, is_channels_last=found.is_channels_last
                )

        return receive

    def _before(self, fit: LayerFit, watch: CallWatch) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Any, ...]) -> None:
            # What is called again, or lends its weight to another layer, keeps its first fit.
            if fit.layer not in self._features or id(layer.weight) in self._written:
                return
            with watch.paused():
                self._fit(fit, layer, inputs[0])

        return hook

    def _fit(self, fit: LayerFit, layer: nn.Conv2d | nn.Linear, x: torch.Tensor) -> None:
        y = self._features.pop(fit.layer) * fit.signs.to(x.device)
        rest = self._rests.pop(fit.layer, None)
        if rest is not None:
            y -= rest
        positions = self._positions[self._grids[fit.layer]]
        width = layer.weight.numel() // len(layer.weight) * getattr(layer, "groups", 1)
        keep = max(_LEAST_POSITIONS, _PATCH_VALUES // width)
        if len(positions) > keep:
            some = torch.arange(keep, device=x.device) * len(positions) // keep
            positions, y = positions[some], y[some]
        patches = read_patches(layer, x, positions)
        if patches is None or not y.isfinite().all():
            return
        read, given = patches.inputs.float(), patches.weight.float()
        mean, target_mean = read.mean(0), y.mean(0)
        inputs, outputs = read.sub_(mean), y - target_mean
        groups, _, per_group = patches.weight.shape
        outputs = outputs.reshape(len(y), groups, per_group)
        weight = fit_around(inputs, outputs, given, self._penalties)
        if not self._has_statistics:
            weight = _quietened(inputs, outputs, weight)
        write_weight(layer, weight)
        self._written.add(id(layer.weight))
        if fit.layer not in self._target.norms and layer.bias is not None:
            shift = torch.einsum("gf,gfo->go", mean, weight).flatten()
            layer.bias.copy_(target_mean - shift)
        error = outputs - torch.einsum("sgf,gfo->sgo", inputs, weight)
        total = outputs.square().sum().clamp_min(torch.finfo(outputs.dtype).tiny)
        self._explained[fit.layer] = 1 - float(error.square().sum() / total)
        self._means[fit.layer] = target_mean
        if fit.layer in self._target.token_norms and rest is None:
            self._wanted[fit.layer] = positions, y
        if rest is not None and (scale := self._sums[fit.layer].scale) is not None:
            scale.fill_(1.0)  # what was fitted is what is added

    def _after(self, fit: LayerFit, watch: CallWatch) -> Callable[..., None]:
        def hook(_l: nn.Module, _i: object, output: torch.Tensor) -> None:
            norm = self._modules.get(self._target.norms.get(fit.layer, ""))
            if fit.layer in self._means and isinstance(norm, _BatchNorm) and norm.affine:
                with watch.paused():
                    axes = [axis for axis in range(output.ndim) if axis != 1]
                    variance = output.var(axes, correction=0)
                    norm.weight.copy_((variance + norm.eps).sqrt())
                    norm.bias.copy_(self._means.pop(fit.layer))
            if not self._features and not self._wanted and not self._has_statistics:
                raise _AllFittedError

        return hook

    def _before_norm(self, fit: LayerFit, watch: CallWatch) -> Callable[..., None]:
        def hook(norm: Any, inputs: tuple[Any, ...]) -> None:
            if fit.layer in self._wanted:
                with watch.paused():
                    positions, wanted = self._wanted.pop(fit.layer)
                    # A norm of the last axis reads a convolution's maps with that in the last place.
                    is_map = isinstance(self._modules[fit.layer], nn.Conv2d)
                    is_moved = is_map and inputs[0].shape[1] != wanted.shape[1]
                    _fit_affine(
                        norm, inputs[0], -1 if is_moved or not is_map else 1, positions, wanted
                    )

        return hook


def _quietened(inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return weights of which no output deviates more than wanted ones (S, G, O) do in the mean.

    An output of which nothing is wanted keeps its given weights, whatever they make of the inputs, which a
    batch norm would make up for.
    """
    made = torch.einsum("sgf,gfo->sgo", inputs, weight).square().mean(0)
    ratio = outputs.square().mean() / made.clamp_min(torch.finfo(made.dtype).tiny)
    is_silent = outputs.square().mean(0) < made * _SILENT
    return weight * torch.where(is_silent, ratio.sqrt().clamp(max=1.0), 1.0)[:, None]


def _fit_affine(
    norm: Any, x: torch.Tensor, axis: int, positions: torch.Tensor, wanted: torch.Tensor
) -> None:
    """Fit a norm's scale and shift to what (S, C) it is to make at positions, channel by channel."""
    if norm.weight is None or norm.weight.shape != wanted.shape[1:]:
        return
    norm.weight.fill_(1.0)
    if (shift := getattr(norm, "bias", None)) is not None:
        shift.zero_()
    made = norm.forward(x).movedim(axis, -1).reshape(-1, wanted.shape[1])[positions].float()
    mean, target_mean = made.mean(0), wanted.mean(0)
    centred = made - mean
    variance = centred.square().sum(0).clamp_min(torch.finfo(made.dtype).tiny)
    scale = (centred * (wanted - target_mean)).sum(0) / variance
    norm.weight.copy_(scale)
    if shift is not None:
        shift.copy_(target_mean - scale * mean)


def _shortcut_fits(fits: Sequence[LayerFit], sums: Sequence[ResidualSum]) -> list[LayerFit]:
    """Return fits of last layers before a sum that have none, to what the sum's other layer is fitted to."""
    by_layer = {fit.layer: fit for fit in fits}
    return [
        replace(by_layer[x.rest_layer], layer=x.layer)
        for x in sums
        if x.layer not in by_layer and x.rest_layer in by_layer
    ]


def _grids(
    module: nn.Module, images: torch.Tensor, names: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return the grids of layers' outputs, of those that have one; two images are run in evaluation mode."""
    grids: dict[str, tuple[int, int]] = {}
    modules = dict(module.named_modules())

    def note(name: str) -> Callable[..., None]:
        def hook(layer: Any, _: object, output: torch.Tensor) -> None:
            if (grid := grid_of(layer, output)) is not None:
                grids.setdefault(name, grid)

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(note(name)).remove)
        with in_evaluation(module):
            module(images)
    return grids


def _positions(
    fits: Sequence[LayerFit],
    grids: dict[str, tuple[int, int]],
    images: int,
    device: torch.device,
    rng: torch.Generator,
) -> dict[tuple[int, int], torch.Tensor]:
    """Draw for each grid the positions, in rising order, that all layers of that grid are fitted at."""
    outputs = sum(len(fit.channels) for fit in fits)
    most = max(_LEAST_POSITIONS, min(_POSITIONS, _FEATURE_VALUES // max(1, outputs)))
    drawn = {}
    for grid in sorted(set(grids.values())):
        count = images * grid[0] * grid[1]
        chosen = torch.randperm(count, generator=rng)[:most].sort().values
        drawn[grid] = chosen.to(device)
    return drawn
