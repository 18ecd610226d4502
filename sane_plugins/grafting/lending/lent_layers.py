"""What units of a trained network lend: one layer's weight, bias and norm, of neighbours their composition.

The method: docs/explanation/sane.md, section 15.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.grafting.lending.unrolled_filters import Sliding, sliding_of
from sane_plugins.grafting.units import NetworkUnits, Norm, Unit
from sane_plugins.weights import Role


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LentNorm(ShortRepr):
    """The tensors (C,) of a norm by role, single precision on the CPU, and what it adds to variances."""

    tensors: Mapping[Role, torch.Tensor]
    eps: float

    @property
    def has_statistics(self) -> bool:
        """Return whether it divides by statistics that it keeps."""
        return "running_var" in self.tensors

    def line(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a norm with statistics multiplies by and adds, (C,) each."""
        scale = (self.tensors["running_var"].double() + self.eps).rsqrt()
        if "scale" in self.tensors:
            scale = scale * self.tensors["scale"].double()
        shift = -self.tensors["running_mean"].double() * scale
        if "shift" in self.tensors:
            shift = shift + self.tensors["shift"].double()
        return scale.float(), shift.float()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LentLayer(ShortRepr):
    """A layer: weight (out, in / groups, *taps), bias (out,) and the norm behind it, on the CPU.

    A linear layer has no taps, or a tap for each position of a flattened map (`is_map`). `scale` (out,)
    multiplies its output. `norm_before` normalises what it reads. `sliding` is how its filters slide.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    groups: int
    is_map: bool = False
    norm: LentNorm | None = None
    norm_before: LentNorm | None = None
    scale: torch.Tensor | None = None
    sliding: Sliding | None = None

    def with_norm_folded(self) -> LentLayer:
        """Return the layer with what its norm multiplies by and adds taken into weight and bias.

        Exact for a norm with statistics; of any other norm only scale and shift are known before it runs.
        """
        if self.norm is None:
            return self
        count = len(self.weight)
        if self.norm.has_statistics:
            scale, shift = self.norm.line()
        else:
            scale = self.norm.tensors.get("scale", torch.ones(count))
            shift = self.norm.tensors.get("shift", torch.zeros(count))
        return replace(self._scaled(scale), bias=_plus(self._scaled(scale).bias, shift), norm=None)

    def with_scale_folded(self) -> LentLayer:
        """Return the layer with the scale of its output taken into what stands before it."""
        if self.scale is None:
            return self
        if self.norm is None:
            return replace(self._scaled(self.scale), scale=None)
        tensors = dict(self.norm.tensors)
        for role in ("scale", "shift"):
            if role in tensors:
                tensors[role] = tensors[role] * self.scale
        return replace(self, norm=replace(self.norm, tensors=tensors), scale=None)

    def standardized(self) -> LentLayer:
        """Return the layer with its norm's statistics taken into weight and bias; scale and shift stay."""
        if self.norm is None or not self.norm.has_statistics:
            return self
        plain = {r: x for r, x in self.norm.tensors.items() if r.startswith("running")}
        rest = {r: x for r, x in self.norm.tensors.items() if r not in plain}
        folded = replace(self, norm=replace(self.norm, tensors=plain)).with_norm_folded()
        return replace(folded, norm=replace(self.norm, tensors=rest))

    def _scaled(self, scale: torch.Tensor) -> LentLayer:
        weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=weight, bias=None if self.bias is None else self.bias * scale)


def lend(network: NetworkUnits, units: Sequence[Unit]) -> LentLayer:
    """Return what units lend: the first is composed with the next ones, activations between them left out.

    Their norms but the last one's are folded. Raises whatever reading a tensor raises.
    """
    lent = _lent(network, units[0])
    for unit in units[1:]:
        lent = _composed(lent.with_scale_folded().with_norm_folded(), _lent(network, unit))
    return lent


def _lent(network: NetworkUnits, unit: Unit) -> LentLayer:
    weight = on_cpu(network.weight(unit))
    if unit.positions:
        weight = weight.view(len(weight), -1, *unit.positions)
    return LentLayer(
        weight=weight,
        bias=None if unit.bias is None else on_cpu(network.graph.tensors[unit.bias]),
        groups=unit.groups,
        is_map=bool(unit.positions),
        norm=_lent_norm(network, unit.norm),
        norm_before=_lent_norm(network, unit.norm_before),
        scale=None if unit.scale is None else on_cpu(network.graph.tensors[unit.scale]).flatten(),
        sliding=sliding_of(unit.module),
    )


def _lent_norm(network: NetworkUnits, norm: Norm | None) -> LentNorm | None:
    if norm is None:
        return None
    tensors = {role: on_cpu(network.graph.tensors[key]) for role, key in norm.keys.items()}
    return LentNorm(tensors=tensors, eps=norm.eps)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values in single precision on the CPU."""
    return tensor.detach().to("cpu", torch.float32)


def _composed(first: LentLayer, second: LentLayer) -> LentLayer:
    """Return one dense layer for two of which one is depthwise or has taps, and the other one tap."""
    a, b = first.weight, second.weight
    taps = max(a.ndim, b.ndim) - 2
    if second.groups > 1:  # depthwise: (m, i, 1..) and (m, 1, k..)
        weight = a * b
        added = b.flatten(1).sum(1) * first.bias if first.bias is not None else None
    elif first.groups > 1:  # a projection (o, i, 1..) of single channels (i, 1, k..)
        weight = b * a.transpose(0, 1)
        added = b.flatten(1) @ first.bias if first.bias is not None else None
    else:
        weight = torch.einsum("om,mik->oik", b.flatten(1), a.flatten(2)).view(len(b), *a.shape[1:])
        added = b.flatten(1) @ first.bias if first.bias is not None else None
    assert weight.ndim == taps + 2
    bias = second.bias if added is None else _plus(second.bias, added)
    taken = second if b[0, 0].numel() > 1 else first
    return replace(
        second,
        weight=weight,
        bias=bias,
        groups=1,
        norm_before=first.norm_before,
        sliding=taken.sliding,
    )


def _plus(one: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if one is None else one + other
