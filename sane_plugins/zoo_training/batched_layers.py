"""Many networks of one architecture as one module: every tensor gains an axis of G networks.

Feature maps are (N, G, C, H, W) and vectors (N, G, F); input shared by all networks, such as images, has no
axis G. Convolutions run as one grouped convolution in channels-last format, which on CPUs takes a third of
the time of G convolutions and a tenth of that of `torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from sane_plugins.architectures import PatchTokens
from sane_plugins.errors import ZooError

_MASK_LEVELS = 2**16


class Batched(nn.Module):
    """Base of batched layers: the tensors of G copies of a layer, stacked under the same names."""

    weight: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, layer: nn.Module, count: int, streams: list[torch.Generator]) -> None:
        super().__init__()
        self.layer, self.count, self.streams = (
            [layer],
            count,
            streams,
        )  # in a list, so that it is not registered as a sub-module
        for name, value in layer.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(_repeat(value, count)))
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, _repeat(buffer, count))

    def merged(self, name: str) -> torch.Tensor | None:
        """Return a tensor with the network and channel axes merged."""
        value: torch.Tensor | None = getattr(self, name, None)
        return None if value is None else value.flatten(0, 1)

    def aligned(self, x: torch.Tensor, name: str, core: int) -> torch.Tensor:
        """Return a tensor (G, ...) reshaped so that its last `core` axes broadcast against x (N, G, ...)."""
        value: torch.Tensor = getattr(self, name)
        return value.view(self.count, *(1,) * (x.ndim - 2 - core), *value.shape[1:])


class BatchedConv2d(Batched):
    """Batched convolution of (N, G, C, H, W), or of shared images (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, C, H, W)."""
        conv, groups = self.layer[0], 1
        assert isinstance(conv, nn.Conv2d)
        if x.ndim == 4 and conv.groups > 1:
            x = x[:, None].expand(-1, self.count, -1, -1, -1)
        if x.ndim == 5:
            x, groups = x.flatten(1, 2), self.count * conv.groups
        y = F.conv2d(
            x,
            _required(self.merged("weight")),
            self.merged("bias"),
            conv.stride,
            conv.padding,
            conv.dilation,
            groups,
        )
        return _split_networks(y, 1, self.count)


class BatchedLinear(Batched):
    """Batched linear layer on (N, G, ..., F), or on shared vectors (N, F)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, ..., F)."""
        if x.ndim == 2:
            weight = _required(self.merged("weight"))
            return _split_networks(F.linear(x, weight, self.merged("bias")), 1, self.count)
        y = torch.bmm(x.movedim(1, 0).flatten(1, -2), self.weight.transpose(1, 2))
        y = y.view(self.count, x.shape[0], *x.shape[2:-1], -1).movedim(0, 1)
        return y if getattr(self, "bias", None) is None else y + self.aligned(y, "bias", 1)


class BatchedBatchNorm2d(Batched):
    """Batched batch norm: per-channel statistics make it one batch norm over all G * C channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, C, H, W)."""
        norm = self.layer[0]
        assert isinstance(norm, nn.BatchNorm2d)
        if self.training:
            self.num_batches_tracked += 1
        y = F.batch_norm(
            x.flatten(1, 2),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.merged("weight"),
            self.merged("bias"),
            self.training,
            norm.momentum or 0.0,
            norm.eps,
        )
        return _split_networks(y, 1, self.count)


class BatchedLayerNorm(Batched):
    """Batched layer norm on (N, G, ..., F)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        norm = self.layer[0]
        assert isinstance(norm, nn.LayerNorm)
        core = len(norm.normalized_shape)
        y = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        return y * self.aligned(x, "weight", core) + self.aligned(x, "bias", core)


class BatchedPatchTokens(Batched):
    """Batched patch tokens from (N, G, D, height, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, T, D)."""
        added = PatchTokens.added(self)  # type: ignore[arg-type]
        return F.pad(x.flatten(-2), (0, 1)).transpose(-1, -2) + added


class BatchedPool(Batched):
    """Batched pooling, which treats channels independently."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, C, H, W), or without G where x has none."""
        pool = self.layer[0]
        y: torch.Tensor = pool(x if x.ndim == 4 else x.flatten(1, 2))
        return y if x.ndim == 4 else _split_networks(y, 1, self.count)


class BatchedFlatten(Batched):
    """Batched flattening of feature maps to vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, F), or (N, F) for shared input."""
        return x.flatten(1) if x.ndim == 4 else x.flatten(2)


class BatchedDropout(Batched):
    """Batched dropout; each network draws its mask from its own generator, with p quantised to 2**-16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        layer = self.layer[0]
        assert isinstance(layer, nn.Dropout)
        if not self.training or not layer.p:
            return x
        mask = self._mask(layer.p, x.movedim(2, -1) if x.ndim == 5 else x)
        return x * (mask.movedim(-1, 2) if x.ndim == 5 else mask)

    def _mask(self, p: float, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled mask for x (N, G, ..., C), laid out in memory as (N, ..., G, C)."""
        shape = x.movedim(1, -2).shape
        positions, width = shape[:-2].numel(), shape[-1]
        words = torch.empty(
            positions, self.count, -(-width // 4), dtype=torch.int64, device=x.device
        )
        for i, stream in enumerate(self.streams):
            words[:, i].random_(-(2**63), None, generator=stream)
        keep = words.view(torch.int16)[..., :width] >= round(p * _MASK_LEVELS) - _MASK_LEVELS // 2
        return keep.to(x.dtype).mul_(1 / (1 - p)).view(shape).movedim(-2, 1)


_BatchedType = Callable[[nn.Module, int, list[torch.Generator]], nn.Module]
BATCHED_LAYERS: Mapping[type[nn.Module], _BatchedType] = {
    nn.Conv2d: BatchedConv2d,
    nn.Linear: BatchedLinear,
    nn.BatchNorm2d: BatchedBatchNorm2d,
    nn.LayerNorm: BatchedLayerNorm,
    PatchTokens: BatchedPatchTokens,
    nn.Flatten: BatchedFlatten,
    nn.Dropout: BatchedDropout,
    nn.MaxPool2d: BatchedPool,
    nn.AvgPool2d: BatchedPool,
    nn.AdaptiveAvgPool2d: BatchedPool,
}


def batched(module: nn.Module, count: int, streams: list[torch.Generator]) -> nn.Module:
    """Replace each layer by its batched form, in place; raise `ZooError` for an unsupported type."""
    batched_type = BATCHED_LAYERS.get(type(module))
    if batched_type is not None:
        return batched_type(module, count, streams)
    if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        raise not_batchable(module, f"it holds a {type(module).__name__}")
    for name, child in module.named_children():
        setattr(module, name, batched(child, count, streams))
    return module


def not_batchable(module: nn.Module, found: str) -> ZooError:
    """Build the error for an architecture that cannot be trained in batches of networks."""
    known = ", ".join(layer.__name__ for layer in BATCHED_LAYERS)
    return ZooError(
        f"architecture {type(module).__name__}",
        found,
        f"networks that are trained many at once are made of {known} and elementwise functions",
        "choose another architecture, or another image size with --size",
    )


def _split_networks(y: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """Split a merged network and channel axis into two."""
    shape = y.shape
    return y.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])


def _repeat(value: torch.Tensor, count: int) -> torch.Tensor:
    return value.detach().expand(count, *value.shape).clone()


def _required(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value
