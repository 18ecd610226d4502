"""Channel effects of torch's own modules; register new layers in `_BY_TYPE`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout, padding, pooling

from sane_plugins.weights.tracing.channel_ops import OPAQUE, POINTWISE, SPATIAL, ChannelOp
from sane_plugins.weights.tracing.function_channels import ELEMENTWISE

_POOLS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool")
_PADS = ("ConstantPad", "ReflectionPad", "ReplicationPad", "ZeroPad")
_ELEMENTWISE_MODULES = (
    nn.Identity,
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.Softmin,
    nn.PReLU,
    dropout._DropoutNd,
)


def module_channel_op(module: nn.Module, inputs: int) -> ChannelOp:
    """Return the channel effect of a leaf module; `opaque` for anything but torch's known layers."""
    forward = getattr(type(module), "forward", None)  # TorchScript's has none to show
    if not str(getattr(forward, "__module__", "")).startswith("torch.nn"):
        return OPAQUE[0]
    op = _from_attributes(module) or _from_type(module)
    is_unsupported = inputs != 1 or getattr(module, "return_indices", False)
    return OPAQUE[0] if op.kind == "pointwise" and is_unsupported else op


def _from_attributes(module: nn.Module) -> ChannelOp | None:
    """Return the operation of a module whose attributes determine it."""
    if isinstance(module, conv._ConvNd):
        is_transposed = isinstance(module, conv._ConvTransposeNd)
        return ChannelOp("transposed_conv" if is_transposed else "conv", groups=module.groups)
    if isinstance(module, nn.GroupNorm):
        return ChannelOp("norm", groups=module.num_groups, dims=(1,))
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return ChannelOp("norm", dims=tuple(range(-len(module.normalized_shape), 0)))
    if isinstance(module, nn.Flatten) and module.end_dim == -1:
        return ChannelOp("flatten", dims=(module.start_dim,))
    return None


def _from_type(module: nn.Module) -> ChannelOp:
    return next((_BY_TYPE[kind] for kind in type(module).__mro__ if kind in _BY_TYPE), OPAQUE[0])


def _pooling_and_padding() -> Iterator[tuple[type[nn.Module], ChannelOp]]:
    """Yield pooling and padding modules, which mix the last k axes."""
    for k in (1, 2, 3):
        op = ChannelOp("pointwise", dims=tuple(range(-k, 0)))
        yield from ((getattr(pooling, f"{name}{k}d"), op) for name in _POOLS)
        yield from ((getattr(padding, f"{name}{k}d"), op) for name in _PADS)


def _activations() -> Iterator[type[nn.Module]]:
    names = {name.replace("_", "") for name in ELEMENTWISE}
    yield from (getattr(activation, n) for n in activation.__all__ if n.lower() in names)


_BY_TYPE: dict[type[nn.Module], ChannelOp] = {
    nn.Linear: ChannelOp("linear"),
    nn.Embedding: ChannelOp("embedding"),
    nn.EmbeddingBag: ChannelOp("embedding"),
    nn.RNNBase: ChannelOp("recurrent"),
    nn.RNNCellBase: ChannelOp("recurrent"),
    nn.MultiheadAttention: ChannelOp("attention"),
    nn.Upsample: ChannelOp("pointwise", dims=SPATIAL),
    batchnorm._BatchNorm: ChannelOp("norm", dims=(1,)),
    nn.BatchNorm2d: ChannelOp("norm", dims=(-3,)),
    nn.BatchNorm3d: ChannelOp("norm", dims=(-4,)),
    nn.InstanceNorm1d: ChannelOp("norm", dims=(-2,)),
    nn.InstanceNorm2d: ChannelOp("norm", dims=(-3,)),
    nn.InstanceNorm3d: ChannelOp("norm", dims=(-4,)),
    **dict.fromkeys(_ELEMENTWISE_MODULES, POINTWISE[0]),
    **dict.fromkeys(_activations(), POINTWISE[0]),
    **dict(_pooling_and_padding()),
}
