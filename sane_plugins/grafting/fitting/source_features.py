"""Features of a trained network at the positions where another network's layers are fitted to them.

The method: docs/explanation/sane.md, section 16.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from sane_plugins.grafting.connections import Activation
from sane_plugins.grafting.fitting.residual_sum import CallWatch, ResidualSum

_BATCH = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedNetwork:
    """A network and images (N, C, H, W) as it reads them.

    `norms` names the batch norm behind each layer that has one, `token_norms` the norm that computes its
    statistics anew; `sums` are the residual sums of its forward pass.
    """

    module: nn.Module
    images: torch.Tensor
    norms: Mapping[str, str]
    token_norms: Mapping[str, str] = field(default_factory=dict)
    sums: Sequence[ResidualSum] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRequest:
    """Which feature is wanted, and where.

    Of the layer named `layer`, behind its norm, and summed with the other branches where it is the last
    before a residual sum: `channels` (O,), on a grid (height, width) of another network, at
    `positions` (S,) that count over images, rows and columns of that grid, in rising order.
    """

    layer: str
    channels: torch.Tensor
    grid: tuple[int, int]
    positions: torch.Tensor
    activation: Activation | None = None


class _Collector:
    """Takes a layer's maps batch by batch and keeps what a request wants of them."""

    def __init__(
        self, request: FeatureRequest, norm: nn.Module | None, is_channels_last: bool
    ) -> None:
        self._request, self._norm, self._is_channels_last = request, norm, is_channels_last
        self._kept: list[torch.Tensor] = []
        self._start = 0

    def __call__(self, maps: torch.Tensor) -> None:
        """Keep what is wanted of the next images' maps (N, C, H, W), (N, H, W, C) or (N, C)."""
        rows, columns = self._request.grid
        count = len(maps) * rows * columns
        positions = self._request.positions
        bounds = torch.tensor([self._start, self._start + count], device=positions.device)
        low, high = torch.searchsorted(positions, bounds).tolist()
        here = positions[low:high] - self._start
        self._start += count
        self._kept.append(self._maps(maps).permute(0, 2, 3, 1).flatten(0, 2)[here])

    def values(self) -> torch.Tensor:
        """Return (S, O)."""
        return torch.cat(self._kept)

    def _maps(self, maps: torch.Tensor) -> torch.Tensor:
        channels = self._request.channels
        if maps.ndim == 2:
            maps = maps[:, :, None, None]
        elif self._is_channels_last:
            maps = maps.permute(0, 3, 1, 2)
        maps = maps[:, channels]
        if isinstance(self._norm, _BatchNorm):
            scale, shift = _affine(self._norm)
            maps = maps * scale[channels, None, None] + shift[channels, None, None]
        if self._request.activation is not None:
            maps = self._request.activation(maps)
        return resized(maps, self._request.grid)


def resized(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return maps (N, C, H, W) on another grid: means over cells, or linear between fewer cells."""
    if maps.shape[2:] == grid:
        return maps
    if maps.shape[2] >= grid[0] and maps.shape[3] >= grid[1]:
        return adaptive_avg_pool2d(maps, grid)
    return interpolate(maps, grid, mode="bilinear", align_corners=False)


def _affine(norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a batch norm multiplies by and adds in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


@torch.no_grad()
def source_features(
    source: PreparedNetwork, requests: Mapping[str, FeatureRequest]
) -> dict[str, torch.Tensor]:
    """Return the features (S, O) that are wanted, by the keys of the requests.

    The source runs in evaluation mode, on a few images at a time.
    """
    module = source.module.eval()
    sums = {x.layer: x for x in source.sums}
    modules = dict(module.named_modules())
    collectors: dict[str, _Collector] = {}
    by_layer: dict[str, list[_Collector]] = {}
    by_call: dict[int, list[_Collector]] = {}
    for key, request in requests.items():
        layer, found = modules[request.layer], sums.get(request.layer)
        norm = None if found else modules.get(source.norms.get(request.layer, ""))
        is_last = found.is_channels_last if found else isinstance(layer, nn.Linear)
        collectors[key] = _Collector(request, norm, is_last)
        if found is None:
            by_layer.setdefault(request.layer, []).append(collectors[key])
        else:
            by_call.setdefault(found.call, []).append(collectors[key])
    receivers = {call: _all(parts) for call, parts in by_call.items()}
    for batch in source.images.split(_BATCH):
        watch = CallWatch(receivers)
        with ExitStack() as stack:
            for name, parts in by_layer.items():
                hook = modules[name].register_forward_hook(_hook(watch, _all(parts)))
                stack.callback(hook.remove)
            stack.enter_context(watch)
            module(batch)
    return {key: collector.values() for key, collector in collectors.items()}


def _all(collectors: Sequence[_Collector]) -> Callable[[torch.Tensor], None]:
    def receive(maps: torch.Tensor) -> None:
        for collector in collectors:
            collector(maps)

    return receive


def _hook(watch: CallWatch, receive: Callable[[torch.Tensor], None]) -> Callable[..., None]:
    def hook(_m: nn.Module, _i: object, output: torch.Tensor) -> None:
        with watch.paused():
            receive(output)

    return hook
