"""What torch's own modules do to channels, as steps of a topology."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout, padding, pooling

from sane_plugins.weights.function_rules import ELEMENTWISE, OPAQUE, POINTWISE, SPATIAL, Step

_POOLS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool")
_PADS = ("ConstantPad", "ReflectionPad", "ReplicationPad", "ZeroPad")
_PLAIN = (
    nn.Identity,
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.Softmin,
    nn.PReLU,
    dropout._DropoutNd,
)


def describe_module(module: nn.Module, inputs: int) -> Step:
    """Return what a leaf module does; `opaque` where it is not one of torch's known layers."""
    if not type(module).forward.__module__.startswith("torch.nn"):
        return OPAQUE[0]
    step = _with_sizes(module) or _by_type(module)
    is_odd = inputs != 1 or getattr(module, "return_indices", False)
    return OPAQUE[0] if step.kind == "pointwise" and is_odd else step


def _with_sizes(module: nn.Module) -> Step | None:
    """Return the step of a module whose own numbers matter."""
    if isinstance(module, conv._ConvNd):
        is_transposed = isinstance(module, conv._ConvTransposeNd)
        return Step("transposed_conv" if is_transposed else "conv", groups=module.groups)
    if isinstance(module, nn.GroupNorm):
        return Step("norm", groups=module.num_groups, dims=(1,))
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return Step("norm", dims=tuple(range(-len(module.normalized_shape), 0)))
    if isinstance(module, nn.Flatten) and module.end_dim == -1:
        return Step("flatten", dims=(module.start_dim,))
    return None


def _by_type(module: nn.Module) -> Step:
    return next((_TYPES[kind] for kind in type(module).__mro__ if kind in _TYPES), OPAQUE[0])


def _spatial() -> Iterator[tuple[type[nn.Module], Step]]:
    """Yield pooling and padding, which mix the last k axes."""
    for k in (1, 2, 3):
        step = Step("pointwise", dims=tuple(range(-k, 0)))
        yield from ((getattr(pooling, f"{name}{k}d"), step) for name in _POOLS)
        yield from ((getattr(padding, f"{name}{k}d"), step) for name in _PADS)


def _activations() -> Iterator[type[nn.Module]]:
    known = {name.replace("_", "") for name in ELEMENTWISE}
    yield from (getattr(activation, n) for n in activation.__all__ if n.lower() in known)


_TYPES: dict[type[nn.Module], Step] = {
    nn.Linear: Step("linear"),
    nn.Embedding: Step("embedding"),
    nn.EmbeddingBag: Step("embedding"),
    nn.RNNBase: Step("recurrent"),
    nn.RNNCellBase: Step("recurrent"),
    nn.MultiheadAttention: Step("attention"),
    nn.Upsample: Step("pointwise", dims=SPATIAL),
    batchnorm._BatchNorm: Step("norm", dims=(1,)),
    nn.BatchNorm2d: Step("norm", dims=(-3,)),
    nn.BatchNorm3d: Step("norm", dims=(-4,)),
    nn.InstanceNorm1d: Step("norm", dims=(-2,)),
    nn.InstanceNorm2d: Step("norm", dims=(-3,)),
    nn.InstanceNorm3d: Step("norm", dims=(-4,)),
    **dict.fromkeys(_PLAIN, POINTWISE[0]),
    **dict.fromkeys(_activations(), POINTWISE[0]),
    **dict(_spatial()),
}
