"""Many networks of one architecture as one module: every tensor gains an axis of G networks.

Maps of features are (N, G, C, H, W), vectors (N, G, F), and what all networks share, such as the images,
has no axis G. Convolutions run as one with G groups in the channels-last format, which on CPUs takes
a third of the time of G convolutions and a tenth of what `torch.vmap` makes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from sane_plugins.errors import ZooError
from sane_plugins.zoo.blocks import Tokens

_LEVELS = 2**16


class Many(nn.Module):
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

    def own(self, x: torch.Tensor, name: str, core: int) -> torch.Tensor:
        """Return a tensor (G, ...) whose last `core` axes fit those of x (N, G, ..., core)."""
        value: torch.Tensor = getattr(self, name)
        return value.view(self.count, *(1,) * (x.ndim - 2 - core), *value.shape[1:])


class ManyConv2d(Many):
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
            x, _required(self.merged("weight")), self.merged("bias"), conv.stride, conv.padding,
            conv.dilation, groups,
        )  # fmt: skip
        return _split(y, 1, self.count)


class ManyLinear(Many):
    """Linear layers of (N, G, ..., F), or of vectors (N, F) that all networks share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, ..., F)."""
        if x.ndim == 2:
            weight = _required(self.merged("weight"))
            return _split(F.linear(x, weight, self.merged("bias")), 1, self.count)
        y = torch.bmm(x.movedim(1, 0).flatten(1, -2), self.weight.transpose(1, 2))
        y = y.view(self.count, x.shape[0], *x.shape[2:-1], -1).movedim(0, 1)
        return y if getattr(self, "bias", None) is None else y + self.own(y, "bias", 1)


class ManyBatchNorm2d(Many):
    """Batch norms; since each channel has its own statistics, they are one over all channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, C, H, W)."""
        norm = self.layer[0]
        assert isinstance(norm, nn.BatchNorm2d)
        if self.training:
            self.num_batches_tracked += 1
        y = F.batch_norm(
            x.flatten(1, 2), self.running_mean.view(-1), self.running_var.view(-1),
            self.merged("weight"), self.merged("bias"), self.training, norm.momentum or 0.0, norm.eps,
        )  # fmt: skip
        return _split(y, 1, self.count)


class ManyLayerNorm(Many):
    """Layer norms of (N, G, ..., F)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        norm = self.layer[0]
        assert isinstance(norm, nn.LayerNorm)
        core = len(norm.normalized_shape)
        y = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        return y * self.own(x, "weight", core) + self.own(x, "bias", core)


class ManyTokens(Many):
    """Tokens of (N, G, D, height, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, T, D)."""
        added = Tokens.added(self)  # type: ignore[arg-type]
        return F.pad(x.flatten(-2), (0, 1)).transpose(-1, -2) + added


class ManyPool(Many):
    """Pooling, which knows no channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, C, H, W), or without G where x has none."""
        pool = self.layer[0]
        y: torch.Tensor = pool(x if x.ndim == 4 else x.flatten(1, 2))
        return y if x.ndim == 4 else _split(y, 1, self.count)


class ManyFlatten(Many):
    """Flattens maps to vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, G, F), or (N, F) of what all networks share."""
        return x.flatten(1) if x.ndim == 4 else x.flatten(2)


class ManyDropout(Many):
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


_Kind = Callable[[nn.Module, int, list[torch.Generator]], nn.Module]
MANY: Mapping[type[nn.Module], _Kind] = {
    nn.Conv2d: ManyConv2d, nn.Linear: ManyLinear, nn.BatchNorm2d: ManyBatchNorm2d,
    nn.LayerNorm: ManyLayerNorm, Tokens: ManyTokens, nn.Flatten: ManyFlatten,
    nn.Dropout: ManyDropout, nn.MaxPool2d: ManyPool, nn.AvgPool2d: ManyPool,
    nn.AdaptiveAvgPool2d: ManyPool,
}  # fmt: skip


class Stack:
    """G networks of one architecture that run and learn as one.

    `flat` (G, P) holds all parameters; those of the module are views of it. Dropout draws from
    `streams`, one generator for each network.
    """

    def __init__(self, networks: Sequence[nn.Module], device: str) -> None:
        self._like, self.count = networks[0], len(networks)
        self.streams = [torch.Generator(device) for _ in networks]
        self.module = _many(copy.deepcopy(networks[0]), self.count, self.streams).to(device)
        self.flat = torch.stack([_flat(network) for network in networks]).to(device)
        self._place()
        self.buffers = dict(self.module.named_buffers())
        for name, buffer in self.buffers.items():
            buffer.copy_(torch.stack([network.get_buffer(name) for network in networks]))
        self._require_alike()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the answers (N, G, K) of all networks to the same images (N, C, H, W)."""
        answer: torch.Tensor = self.module(images)
        return answer

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the gradient (G, P) of a sum of the networks' losses."""
        parts = torch.autograd.grad(loss, list(self.module.parameters()))
        return torch.cat([part.flatten(1) for part in parts], 1)

    def state_dict(
        self, index: int, flat: torch.Tensor, buffers: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return one network's state dict, as the plain network has it."""
        sizes = [value.numel() for value in self._like.parameters()]
        names = [name for name, _ in self._like.named_parameters()]
        parts = dict(zip(names, flat[index].split(sizes), strict=True))
        parts |= {name: value[index] for name, value in buffers.items()}
        return {key: parts[key].view(value.shape) for key, value in self._like.state_dict().items()}

    def _place(self) -> None:
        """Let the module's parameters be views of `flat`."""
        start = 0
        for parameter in self.module.parameters():
            size = parameter[0].numel()
            parameter.data = self.flat[:, start : start + size].view(parameter.shape)
            start += size

    @torch.no_grad()
    def _require_alike(self) -> None:
        """Raise `ZooError` where the module has other tensors than the plain network."""
        plain = {k: v.shape for k, v in self._like.state_dict().items()}
        found = {k: v.shape[1:] for k, v in self.module.state_dict().items()}
        if plain != found:
            raise _unfit(self._like, "its tensors are tied or made as it runs")

    @torch.no_grad()
    def require_same(self, images: torch.Tensor) -> None:
        """Raise `ZooError` unless the first network answers these images as it does alone."""
        self.module.eval()
        alone = copy.deepcopy(self._like).to(images.device).eval()
        alone.load_state_dict(self.state_dict(0, self.flat, self.buffers))
        try:
            plain, found = alone(images), self.logits(images)[:, 0]
        except Exception as error:  # any layer may refuse a shape, each in its own words
            first = str(error).partition("\n")[0][:160]
            raise _unfit(self._like, f"it does not take these images ({first})") from error
        if plain.shape != found.shape or not torch.allclose(plain, found, rtol=1e-2, atol=1e-3):
            raise _unfit(self._like, "its forward does not work with an axis of networks")


def _many(module: nn.Module, count: int, streams: list[torch.Generator]) -> nn.Module:
    kind = MANY.get(type(module))
    if kind is not None:
        return kind(module, count, streams)
    if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        raise _unfit(module, f"it holds a {type(module).__name__}")
    for name, child in module.named_children():
        setattr(module, name, _many(child, count, streams))
    return module


def _unfit(module: nn.Module, found: str) -> ZooError:
    known = ", ".join(kind.__name__ for kind in MANY)
    return ZooError(
        f"architecture {type(module).__name__}", found,
        f"networks that are trained many at once are made of {known} and elementwise functions",
        "choose another architecture, or another image size with --size",
    )  # fmt: skip


def _split(y: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """Return a tensor whose networks and channels, one axis so far, are two."""
    shape = y.shape
    return y.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])


def _flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def _repeated(value: torch.Tensor, count: int) -> torch.Tensor:
    return value.detach().expand(count, *value.shape).clone()


def _required(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value
