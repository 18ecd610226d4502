"""Graft: the weights of matched units, brought to the target's shapes by channel group.

The method: docs/explanation/sane.md, section 15.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sane_plugins.display import ShortRepr
from sane_plugins.grafting.channel_maps import ChannelMaps
from sane_plugins.grafting.lending.fitted_weights import fitted_weight, image_inputs
from sane_plugins.grafting.lending.lent_layers import LentLayer, LentNorm, lend, on_cpu
from sane_plugins.grafting.matching import Matching, Pair
from sane_plugins.grafting.units import NetworkUnits, Norm, Unit
from sane_plugins.weights import Role

_GATE_FACTOR, _GATE_SHIFT = 0.1, 3.0
_NOISE = 0.02
_UNSURE_SCALE = 0.1  # of a branch that does not compute what its source does


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GraftedWeights(ShortRepr):
    """Values by the target's keys: what was `lent` by the source, and what was only `adjusted` to it.

    `opened` counts the gates without a partner that were opened.
    """

    lent: Mapping[str, torch.Tensor]
    adjusted: Mapping[str, torch.Tensor]
    opened: int


def graft(
    source: NetworkUnits,
    target: NetworkUnits,
    matching: Matching,
    rng: torch.Generator,
    noise: float = _NOISE,
) -> GraftedWeights:
    """Return what the matched units of the target get from the source's; neither network is changed.

    The last layer gets weights where both have equally many outputs. `noise` is that on weights of copied
    channels, relative. Tensors are in single precision on the CPU.
    """
    grafting = _Grafting(source, target, matching, rng, noise)
    for unit in target.units:
        pair = matching.pairs.get(unit.name)
        if pair is not None:
            grafting.transfer(pair)
    grafting.transfer_extras()
    opened = [unit for unit in target.units if unit.ends_gate and unit.name not in matching.pairs]
    for unit in opened:
        grafting.open_gate(unit)
    lent = {key: value for key, value in grafting.lent.items() if bool(value.isfinite().all())}
    return GraftedWeights(lent=lent, adjusted=grafting.adjusted, opened=len(opened))


class _Grafting:
    """Collects the values of one graft."""

    def __init__(
        self,
        source: NetworkUnits,
        target: NetworkUnits,
        matching: Matching,
        rng: torch.Generator,
        noise: float,
    ) -> None:
        self._source, self._target, self._rng, self._noise = source, target, rng, noise
        self._maps, self._matching = ChannelMaps(source, target, matching), matching
        self.lent: dict[str, torch.Tensor] = {}
        self.adjusted: dict[str, torch.Tensor] = {}

    def transfer(self, pair: Pair) -> None:
        """Note what a unit gets."""
        unit, network = pair.target, self._target
        lent = lend(self._source, pair.sources)
        inputs, outputs = self._maps.inputs(pair), self._maps.outputs(pair)
        self._give_norm(unit.norm_before, lent.norm_before, inputs, None)
        if unit.place == "classifier" and len(lent.weight) != len(network.weight(unit)):
            return
        if len(unit.kernel) != lent.weight.ndim - 2 and unit.kernel and lent.weight.ndim > 2:
            return
        if any(network.groups[group].is_image for group in unit.inputs) and lent.groups == 1:
            count = sum(network.groups[group].size for group in unit.inputs)
            lent, inputs = (
                replace(lent, weight=image_inputs(lent.weight, count)),
                torch.arange(count),
            )
        if unit.scale is None:
            lent = lent.with_scale_folded()
        else:
            fresh = 1.0 if self._is_whole(unit) else _UNSURE_SCALE
            self._give_scale(unit.scale, lent.scale, outputs, fresh)
        lent = _for_norm(lent, unit.norm)
        weight = fitted_weight(lent, unit, outputs, inputs, self._rng, self._noise)
        if weight.shape != network.weight(unit).shape:
            return
        self.lent[unit.weight] = weight
        bias = torch.zeros(len(lent.weight)) if lent.bias is None else lent.bias
        if unit.bias is not None:
            self.lent[unit.bias], bias = bias[outputs], torch.zeros(len(bias))
        self._give_norm(unit.norm, lent.norm, outputs, bias)

    def transfer_extras(self) -> None:
        """Note the tensors that stand behind matched units, by their outputs, or as they are."""
        lent = {
            (x.behind, x.param.role, len(x.param.shape), x.index): x for x in self._source.extras
        }
        for extra in self._target.extras:
            pair = self._matching.pairs.get(extra.behind or "")
            if pair is None and extra.behind is not None:
                continue
            behind = None if pair is None else pair.source.name
            shape = extra.param.shape
            found = lent.get((behind, extra.param.role, len(shape), extra.index))
            if found is None:
                continue
            values = on_cpu(self._source.graph.tensors[found.param.key])
            if pair is not None and values.shape != shape:
                outputs = self._maps.outputs(pair)
                width = sum(self._source.groups[group].size for group in pair.source.outputs)
                for axis, (size, old) in enumerate(zip(shape, values.shape, strict=True)):
                    if (size, old) == (len(outputs), width):
                        values = values.index_select(axis, outputs)
            if values.shape == shape:
                self.lent[extra.param.key] = values

    def open_gate(self, unit: Unit) -> None:
        """Let a gate that has no partner pass nearly all."""
        weight = self._target.weight(unit)
        self.adjusted[unit.weight] = on_cpu(weight) * _GATE_FACTOR
        if unit.bias is not None:
            bias = self._target.graph.tensors[unit.bias]
            self.adjusted[unit.bias] = on_cpu(bias) + _GATE_SHIFT

    def _is_whole(self, unit: Unit) -> bool:
        """Return whether a unit's block gets all units of a source's block in their order."""
        ours = self._body(self._target, unit)
        pairs = [self._matching.pairs.get(one.name) for one in ours]
        theirs = [one for pair in pairs if pair for one in pair.sources]
        if not theirs or not all(pairs):
            return False
        body = self._body(self._source, theirs[0])
        return [one.name for one in theirs] == [one.name for one in body]

    def _body(self, network: NetworkUnits, unit: Unit) -> list[Unit]:
        return [x for x in network.units if (x.block, x.place) == (unit.block, "body")]

    def _give_scale(
        self, key: str, scale: torch.Tensor | None, outputs: torch.Tensor, fresh: float
    ) -> None:
        """Note the scale of an output: the source's, or a `fresh` one, as the target's is next to nothing."""
        shape = self._target.graph.tensors[key].shape
        values = torch.full((len(outputs),), fresh) if scale is None else scale[outputs]
        self.lent[key] = values.view(shape)

    def _give_norm(
        self,
        norm: Norm | None,
        lent: LentNorm | None,
        channels: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        """Note the tensors of a norm: the source's by index, its statistics for what has no `bias` yet."""
        if norm is None or any(key in self.lent for key in norm.keys.values()):
            return
        tensors: dict[Role, torch.Tensor] = dict(lent.tensors) if lent else {}
        if bias is not None and "running_mean" in tensors:
            tensors["running_mean"] = tensors["running_mean"] - bias
        elif bias is not None and bool(bias.any()):
            tensors["shift"] = tensors.get("shift", torch.zeros(len(bias))) + bias
        if lent and "running_var" in tensors:
            tensors["running_var"] = (tensors["running_var"] + (lent.eps - norm.eps)).clamp(min=0)
        for role, key in norm.keys.items():
            shape = self._target.graph.tensors[key].shape
            if role in tensors and shape.numel() == len(channels):
                self.lent[key] = tensors[role][channels].view(shape)


def _for_norm(lent: LentLayer, norm: Norm | None) -> LentLayer:
    """Return what a layer is lent as a layer with this norm behind it needs it.

    Without a norm, what the source's does is in weight and bias; a norm without statistics of its own gets
    a standardised output.
    """
    if norm is None:
        return lent.with_norm_folded()
    return lent if norm.has_statistics else lent.standardized()
