"""Propagate channels through a network's layers: which axes of which tensors are permuted together.

A value that flows between layers carries at most one axis whose channels may be permuted. Anything
that is not understood is pinned: the result is sound, but not complete.
The method: docs/explanation/sane.md, section 10.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import chain

from sane_plugins.symmetry.axis_rules import AXIS_RULES, ChannelValue, from_end
from sane_plugins.symmetry.channel_groups import ChannelGroups, ChannelLayout
from sane_plugins.weights import Layer, Param, WeightGraph

# A value with channels, an unmodified parameter, or a value that may not be permuted.
Read = ChannelValue | Param | None
_MAX_SEGMENTS = (
    256  # of an axis; more are pinned, as each layer that reads the axis looks at all of them
)
AxisLayouts = dict[tuple[str, int], ChannelLayout | None]


def propagate_channels(graph: WeightGraph) -> tuple[ChannelGroups, AxisLayouts]:
    """Return the channel groups of a network and the layout of each axis (key, axis) of its tensors."""
    flow = _ChannelFlow(graph)
    by_name = {layer.name: layer for layer in graph.layers}
    try:
        order = list(TopologicalSorter({x.name: x.inputs for x in graph.layers}).static_order())
    except CycleError:
        return ChannelGroups(), {}
    for name in order:
        if name in by_name:
            flow.step(by_name[name])
    return flow.groups, flow.axes


class _ChannelFlow:
    """State of the propagation: the values of visited layers, and the layouts of tensor axes."""

    def __init__(self, graph: WeightGraph) -> None:
        self.groups, self.axes = ChannelGroups(), AxisLayouts()
        self.values: dict[str, Read] = {}
        self._ties = graph.ties
        self._params = {p.key: p for p in graph.params}

    def step(self, layer: Layer) -> None:
        """Compute a layer's output value from its inputs."""
        if layer.is_value:
            key = self._ties.get(layer.name, layer.name)
            param = layer.params[0] if len(layer.params) == 1 else None
            self.values[layer.name] = param or self._params.get(key)
            return
        reads = [self.values.get(name) for name in layer.inputs]
        self.values[layer.name] = self._apply(layer, reads)

    def _apply(self, layer: Layer, reads: Sequence[Read]) -> Read:
        params = [*layer.params, *(r for r in reads if isinstance(r, Param))]
        data = [r for r in reads if not isinstance(r, Param)]
        if layer.kind == "join":
            return self._join(data, params)
        if layer.kind == "concat" and not params:
            return self._concat(layer, data)
        if layer.kind == "pointwise" and len(params) == 1 and not (data or layer.dims):
            return params[0]
        if len(data) == 1:
            if layer.kind in ("conv", "transposed_conv", "linear", "embedding"):
                return self._matrix(layer, data[0], params)
            if layer.kind in ("norm", "pointwise"):
                return self._norm(layer, data[0], params)
            if layer.kind == "reduce" and not params:
                return self._reduce(layer, data[0])
            if layer.kind in AXIS_RULES and not params and data[0]:
                return AXIS_RULES[layer.kind](layer, data[0]) or self._pin(data)
        return self._pin(data, params)

    def _pin(self, data: Sequence[Read], params: Sequence[Param] = ()) -> ChannelValue | None:
        """Pin all inputs and params; return None, since nothing of the output may be permuted."""
        for value in data:
            if isinstance(value, ChannelValue):
                self.groups.pin(value.layout)
        for param in params:
            self._require(param, {})
        return None

    def _require(self, param: Param, where: Mapping[int, ChannelLayout | None]) -> None:
        """Require these layouts of a tensor's axes, and pin its other axes."""
        key = self._ties.get(param.key, param.key)
        other_shape = key in self._params and self._params[key].shape != param.shape
        if other_shape or not param.size:
            for layout in where.values():
                self.groups.pin(layout or ())
            param, where = self._params.get(key, param), {}
        for axis in range(len(param.shape)):
            layout = where.get(axis)
            known = self.axes.setdefault((key, axis), layout)
            if known is not None and layout is not None:
                self.groups.unify(known, layout)
            else:
                self.groups.pin(known or layout or ())

    def _fit(self, value: Read, axis: int, size: int) -> ChannelLayout | None:
        """Return the layout of `axis` where it has `size` entries; pin and return None otherwise."""
        if not isinstance(value, ChannelValue):
            return None
        entries = self.groups.entries(value.layout)
        times = size // max(entries, 1)
        if (
            value.axis != axis
            or times * entries != size
            or (times > 1 and value.stretch != "repeat")
        ):
            self._pin([value])
            return None
        return tuple((group, repeat * times) for group, repeat in value.layout)

    # layers with matrices

    def _matrix(self, layer: Layer, value: Read, params: Sequence[Param]) -> ChannelValue | None:
        """Create a new group for the outputs, and tie the input axis to the layout that is read."""
        weights = [p for p in params if len(p.shape) > 1]
        biases = [p for p in params if len(p.shape) == 1]
        if len(weights) != 1 or len(weights) + len(biases) != len(params) or len(biases) > 1:
            return self._pin([value], params)
        weight, rank = weights[0], len(weights[0].shape)
        if (layer.kind in ("linear", "embedding")) != (rank == 2):
            return self._pin([value], params)
        channel_axis = -1 if rank == 2 else 1 - rank
        if layer.groups > 1:
            outputs = self._grouped_conv(layer, value, weight)
        else:
            out, into = self._axes(layer, weight)
            if layer.kind == "embedding":
                value = self._pin([value])
            outputs = self.groups.new(weight.shape[out])
            inputs = self._fit(value, channel_axis, weight.shape[into])
            self._require(weight, {out: outputs, into: inputs})
        for bias in biases:
            fits = bias.shape[0] == self.groups.entries(outputs)
            self._require(bias, {0: outputs if fits else None})
            if not fits:
                self.groups.pin(outputs)
        if rank == 2:
            rank_read = value.rank if isinstance(value, ChannelValue) else None
            return ChannelValue(outputs, channel_axis, rank_read)
        return ChannelValue(outputs, channel_axis, rank)

    def _axes(self, layer: Layer, weight: Param) -> tuple[int, int]:
        """Return the output and the input axis."""
        if layer.kind == "linear":
            return weight.axis % 2, 1 - weight.axis % 2
        return (0, 1) if layer.kind == "conv" else (1, 0)

    def _grouped_conv(self, layer: Layer, value: Read, weight: Param) -> ChannelLayout:
        """Permute whole groups of a grouped convolution; depthwise is a special case."""
        groups, first, second = layer.groups, *weight.shape[:2]
        is_conv = layer.kind == "conv"
        read = self._fit(value, 1 - len(weight.shape), second * groups if is_conv else first)
        outputs_per_group = first // groups if is_conv else second
        if read is None:
            outputs = self.groups.new(outputs_per_group * groups, groups)
            self._require(weight, {0: outputs} if is_conv else {})
            if not is_conv:
                self.groups.pin(outputs)
            return outputs
        unit = self.groups.new(groups)[0][0]
        self.groups.unify(((unit, self.groups.entries(read) // groups),), read)
        outputs = ((unit, outputs_per_group),)
        self._require(weight, {0: outputs if is_conv else read})
        return outputs

    # layers without matrices

    def _norm(self, layer: Layer, value: Read, params: Sequence[Param]) -> ChannelValue | None:
        """Preserve the channels and tie the layer's vectors to them; this covers pointwise layers too."""
        axis = self._norm_axis(layer, value, params)
        params = [p for p in params if p.shape and p.size > 1]
        if not isinstance(value, ChannelValue) or axis is None:
            return self._pin([value], params)
        if params and (size := self._channel_count(params[0], axis)):
            layout = self._fit(value, value.axis, size)
            if layout is None:
                return self._pin([], params)
            value = replace(value, layout=layout, stretch="")
        if value.stretch and layer.groups > 1:
            return self._pin([value], params)
        if layer.kind == "norm" and 1 < layer.groups < self.groups.entries(value.layout):
            self.groups.restrict_to_blocks(value.layout, layer.groups)
        fits = [self._broadcast(param, value, axis) for param in params]
        return value if all(fits) else None

    def _norm_axis(self, layer: Layer, value: Read, params: Sequence[Param]) -> int | None:
        """Return the channel axis as the layer's parameters count it; None where the layer mixes along it."""
        if not isinstance(value, ChannelValue):
            return None
        if layer.kind == "pointwise" and layer.dims:
            pooled_axes = from_end(layer.dims, value.rank)
            is_unknown = value.rank is None and max(pooled_axes) >= 0
            return None if is_unknown or value.axis in pooled_axes else value.axis
        if all(len(p.shape) > 1 or p.size == 1 for p in params):
            return value.axis
        (norm_axis,) = from_end(layer.dims[:1] or (1,), value.rank)
        if norm_axis == 1 and layer.kind == "norm" and layer.groups == 1:
            # A linear layer's output of unknown rank is taken to be (N, C) where a norm follows.
            norm_axis = -1
        if norm_axis == value.axis:
            return -1
        return value.axis if norm_axis < 0 and value.axis < -1 else None

    def _channel_count(self, param: Param, axis: int) -> int:
        """Return the number of channels of a parameter; 0 where it has no such axis."""
        return param.shape[axis] if len(param.shape) >= -axis and param.shape[axis] > 1 else 0

    def _broadcast(self, param: Param, value: ChannelValue, axis: int) -> bool:
        """Tie the axis of a parameter that broadcasts along the channels to their layout, if it fits."""
        size = self._channel_count(param, axis)
        if size and (value.stretch or size != self.groups.entries(value.layout)):
            self._pin([value], [param])
            return False
        self._require(param, {axis % len(param.shape): value.layout} if size else {})
        return True

    def _join(self, data: Sequence[Read], params: Sequence[Param]) -> ChannelValue | None:
        """Unify the channels of all values; values with one channel are broadcast."""
        values = [v for v in data if isinstance(v, ChannelValue)]
        widest = max(values, key=lambda v: self.groups.entries(v.layout), default=None)
        if widest is None or len(values) < len(data):
            return self._pin(data, params)
        if any((v.axis, v.stretch) != (widest.axis, widest.stretch) for v in values):
            return self._pin(data, params)
        for value in values:
            if value is not widest and self.groups.entries(value.layout) > 1:
                self.groups.unify(widest.layout, value.layout)
        fits = [self._broadcast(param, widest, widest.axis) for param in params]
        ranks = [*(v.rank or 0 for v in values), *(len(p.shape) for p in params)]
        return replace(widest, rank=max(ranks) if all(ranks) else None) if all(fits) else None

    def _concat(self, layer: Layer, data: Sequence[Read]) -> ChannelValue | None:
        values = [v for v in data if isinstance(v, ChannelValue) and not v.stretch]
        if len(values) < len(data) or len({(v.axis, v.rank) for v in values}) != 1:
            return self._pin(data)
        axes = from_end(layer.dims, values[0].rank)
        if values[0].axis in axes:
            layout = tuple(chain.from_iterable(v.layout for v in values))
            return (
                replace(values[0], layout=layout)
                if len(layout) <= _MAX_SEGMENTS
                else self._pin(data)
            )
        if any(a >= 0 for a in axes) or not axes:
            return self._pin(data)
        return self._join(values, ())

    def _reduce(self, layer: Layer, value: Read) -> ChannelValue | None:
        """Reduce axes; means, sums and maxima do not depend on the order of channels."""
        axes = from_end(layer.dims, value.rank) if isinstance(value, ChannelValue) else ()
        if not isinstance(value, ChannelValue) or value.stretch or any(a >= 0 for a in axes):
            return self._pin([value])
        return replace(value, layout=self.groups.new(1)) if value.axis in axes else value
