"""Many networks of one architecture as one module: every tensor gains an axis of G networks.

Maps of features are (N, G, C, H, W), vectors (N, G, F), and what all networks share, such as the images,
has no axis G. Convolutions run as one with G groups in the channels-last format, which on CPUs takes
a third of the time of G convolutions and a tenth of what `torch.vmap` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from sane_plugins.architectures import PatchTokens
from sane_plugins.errors import ZooError

_LEVELS = 2**16


class Batched(nn.Module):
    """G layers of one kind; their tensors are stacked under the same names."""

    weight: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, layer: nn.Module, count: int, streams: list[torch.Generator]) -> None:
        super().__init__()
        self.layer, self.count, self.streams = [layer], count, streams  # in a list: no sub-module
        for name, value in layer.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(_repeated(value, count)))
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, _repeated(buffer, count))

    def merged(self, name: str) -> torch.Tensor | None:
        """Return a tensor with networks and channels as one axis."""
        value: torch.Tensor | None = getattr(self, name, None)
        return None if value is None else value.flatten(0, 1)

    def aligned(self, x: torch.Tensor, name: str, core: int) -> torch.Tensor:
        """Return a tensor (G, ...) whose last `core` axes fit those of x (N, G, ..., core)."""
        value: torch.Tensor = getattr(self, name)
        return value.view(self.count, *(1,) * (x.ndim - 2 - core), *value.shape[1:])


class BatchedConv2d(Batched):
    """Convolutions of (N, G, C, H, W), or of images (N, C, H, W) that all networks share."""

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
        return _unmerge(y, 1, self.count)


class BatchedLinear(Batched):
    """Linear layers of (N, G, ..., F), or of vectors (N, F) that all networks share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, ..., F)."""
        if x.ndim == 2:
            weight = _required(self.merged("weight"))
            return _unmerge(F.linear(x, weight, self.merged("bias")), 1, self.count)
        y = torch.bmm(x.movedim(1, 0).flatten(1, -2), self.weight.transpose(1, 2))
        y = y.view(self.count, x.shape[0], *x.shape[2:-1], -1).movedim(0, 1)
        return y if getattr(self, "bias", None) is None else y + self.aligned(y, "bias", 1)


class BatchedBatchNorm2d(Batched):
    """Batch norms; since each channel has its own statistics, they are one over all channels."""

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
        return _unmerge(y, 1, self.count)


class BatchedLayerNorm(Batched):
    """Layer norms of (N, G, ..., F)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        norm = self.layer[0]
        assert isinstance(norm, nn.LayerNorm)
        core = len(norm.normalized_shape)
        y = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        return y * self.aligned(x, "weight", core) + self.aligned(x, "bias", core)


class BatchedPatchTokens(Batched):
    """Tokens of (N, G, D, height, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, T, D)."""
        added = PatchTokens.added(self)  # type: ignore[arg-type]
        return F.pad(x.flatten(-2), (0, 1)).transpose(-1, -2) + added


class BatchedPool(Batched):
    """Pooling, which knows no channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, C, H, W), or without G where x has none."""
        pool = self.layer[0]
        y: torch.Tensor = pool(x if x.ndim == 4 else x.flatten(1, 2))
        return y if x.ndim == 4 else _unmerge(y, 1, self.count)


class BatchedFlatten(Batched):
    """Flattens maps to vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, F), or (N, F) of what all networks share."""
        return x.flatten(1) if x.ndim == 4 else x.flatten(2)


class BatchedDropout(Batched):
    """Dropout whose mask each network draws from its own stream, in steps of 2**-16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        layer = self.layer[0]
        assert isinstance(layer, nn.Dropout)
        if not self.training or not layer.p:
            return x
        mask = self._mask(layer.p, x.movedim(2, -1) if x.ndim == 5 else x)
        return x * (mask.movedim(-1, 2) if x.ndim == 5 else mask)

    def _mask(self, p: float, x: torch.Tensor) -> torch.Tensor:
        """Return the factors of values (N, G, ..., C), which lie in memory as (N, ..., G, C)."""
        shape = x.movedim(1, -2).shape
        positions, width = shape[:-2].numel(), shape[-1]
        words = torch.empty(
            positions, self.count, -(-width // 4), dtype=torch.int64, device=x.device
        )
        for i, stream in enumerate(self.streams):
            words[:, i].random_(-(2**63), None, generator=stream)
        keep = words.view(torch.int16)[..., :width] >= round(p * _LEVELS) - _LEVELS // 2
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
    """Replace each layer by its batched form, in place; raise `ZooError` for a type that has none."""
    batched_type = BATCHED_LAYERS.get(type(module))
    if batched_type is not None:
        return batched_type(module, count, streams)
    if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        raise not_batchable(module, f"it holds a {type(module).__name__}")
    for name, child in module.named_children():
        setattr(module, name, batched(child, count, streams))
    return module


def not_batchable(module: nn.Module, found: str) -> ZooError:
    """Return the error for an architecture whose networks cannot be trained together."""
    known = ", ".join(layer.__name__ for layer in BATCHED_LAYERS)
    return ZooError(
        f"architecture {type(module).__name__}",
        found,
        f"networks that are trained many at once are made of {known} and elementwise functions",
        "choose another architecture, or another image size with --size",
    )


def _unmerge(y: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """Split one axis of networks and channels into two."""
    shape = y.shape
    return y.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])


def _repeated(value: torch.Tensor, count: int) -> torch.Tensor:
    return value.detach().expand(count, *value.shape).clone()


def _required(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value
