"""Follow channels through a network's layers: which axes of which tensors must be permuted alike.

A value that flows between layers carries at most one axis whose channels may be permuted. Whatever is
not understood is pinned, so the result is sound, never complete.
The method: docs/explanation/sane.md, section 10.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from sane_plugins.symmetry.axis_rules import MOVES, Value, from_end
from sane_plugins.symmetry.groups import ChannelGroups, ChannelLayout
from sane_plugins.weights import Layer, Param, WeightGraph

# A value with channels, a parameter as it is, or something that never changes.
Read = Value | Param | None
Uses = dict[tuple[str, int], ChannelLayout | None]


def follow(graph: WeightGraph) -> tuple[ChannelGroups, Uses]:
    """Return the spaces of a network and the layout of each axis (key, axis) of its tensors."""
    flow = _ChannelFlow(graph)
    by_name = {layer.name: layer for layer in graph.layers}
    try:
        order = list(TopologicalSorter({x.name: x.inputs for x in graph.layers}).static_order())
    except CycleError:
        return ChannelGroups(), {}
    for name in order:
        if name in by_name:
            flow.step(by_name[name])
    return flow.spaces, flow.uses


class _ChannelFlow:
    def __init__(self, graph: WeightGraph) -> None:
        self.spaces, self.uses = ChannelGroups(), Uses()
        self.values: dict[str, Read] = {}
        self._ties = graph.ties
        self._params = {p.key: p for p in graph.params}

    def step(self, layer: Layer) -> None:
        """Work out what a layer gives from what it reads."""
        if layer.kind == "parameter":
            key = self._ties.get(layer.name, layer.name)
            own = layer.params[0] if len(layer.params) == 1 else None
            self.values[layer.name] = own or self._params.get(key)
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
            if layer.kind in MOVES and not params and data[0]:
                return MOVES[layer.kind](layer, data[0]) or self._stop(data)
        return self._stop(data, params)

    def _stop(self, data: Sequence[Read], params: Sequence[Param] = ()) -> Value | None:
        """Pin everything that is read, and give nothing that may be permuted."""
        for value in data:
            if isinstance(value, Value):
                self.spaces.pin(value.layout)
        for param in params:
            self._use(param, {})
        return None

    def _use(self, param: Param, where: Mapping[int, ChannelLayout | None]) -> None:
        """Demand these layouts on a tensor's axes; the other axes must stay as they are."""
        key = self._ties.get(param.key, param.key)
        if key in self._params and self._params[key].shape != param.shape:
            param, where = self._params[key], {}
        for axis in range(len(param.shape)):
            layout, place = where.get(axis), (key, axis)
            known = self.uses.setdefault(place, layout)
            if known is not None and layout is not None:
                self.spaces.unify(known, layout)
            else:
                self.spaces.pin(known or layout or ())

    def _fit(self, value: Read, axis: int, size: int) -> ChannelLayout | None:
        """Return the layout of `axis` where it has `size` entries; pin and return None otherwise."""
        if not isinstance(value, Value):
            return None
        entries = self.spaces.entries(value.layout)
        times = size // entries
        if value.axis != axis or size % entries or (times > 1 and value.stretch != "repeat"):
            self._stop([value])
            return None
        return tuple((space, repeat * times) for space, repeat in value.layout)

    # layers with matrices

    def _matrix(self, layer: Layer, value: Read, params: Sequence[Param]) -> Value | None:
        """Give a new space to the outputs and hold the input axis to the layout that is read."""
        weights = [p for p in params if len(p.shape) > 1]
        biases = [p for p in params if len(p.shape) == 1]
        if len(weights) != 1 or len(weights) + len(biases) != len(params) or len(biases) > 1:
            return self._stop([value], params)
        weight, rank = weights[0], len(weights[0].shape)
        if (layer.kind in ("linear", "embedding")) != (rank == 2):
            return self._stop([value], params)
        at = -1 if rank == 2 else 1 - rank
        if layer.groups > 1:
            made = self._grouped(layer, value, weight)
        else:
            out, into = self._axes(layer, weight)
            if layer.kind == "embedding":
                value = self._stop([value])
            made = self.spaces.new(weight.shape[out])
            self._use(weight, {out: made, into: self._fit(value, at, weight.shape[into])})
        for bias in biases:
            fits = bias.shape[0] == self.spaces.entries(made)
            self._use(bias, {0: made if fits else None})
            if not fits:
                self.spaces.pin(made)
        if rank == 2:
            return Value(made, at, value.rank if isinstance(value, Value) else None)
        return Value(made, at, rank)

    def _axes(self, layer: Layer, weight: Param) -> tuple[int, int]:
        """Return the output and the input axis."""
        if layer.kind == "linear":
            return weight.axis % 2, 1 - weight.axis % 2
        return (0, 1) if layer.kind == "conv" else (1, 0)

    def _grouped(self, layer: Layer, value: Read, weight: Param) -> ChannelLayout:
        """Permute the groups of a grouped convolution as wholes; a depthwise one is a case of it."""
        groups, first, second = layer.groups, *weight.shape[:2]
        is_conv = layer.kind == "conv"
        read = self._fit(value, 1 - len(weight.shape), second * groups if is_conv else first)
        each = first // groups if is_conv else second
        if read is None:
            made = self.spaces.new(each * groups, groups)
            self._use(weight, {0: made} if is_conv else {})
            if not is_conv:
                self.spaces.pin(made)
            return made
        whole = self.spaces.new(groups)[0][0]
        self.spaces.unify(((whole, self.spaces.entries(read) // groups),), read)
        made = ((whole, each),)
        self._use(weight, {0: made if is_conv else read})
        return made

    # layers without matrices

    def _norm(self, layer: Layer, value: Read, params: Sequence[Param]) -> Value | None:
        """Keep the channels and hold the layer's vectors to them; a pointwise layer is alike."""
        axis = self._norm_axis(layer, value, params)
        params = [p for p in params if p.shape and p.size > 1]
        if not isinstance(value, Value) or axis is None:
            return self._stop([value], params)
        if params and (size := self._size(params[0], axis)):
            layout = self._fit(value, value.axis, size)
            if layout is None:
                return self._stop([], params)
            value = replace(value, layout=layout, stretch="")
        if value.stretch and layer.groups > 1:
            return self._stop([value], params)
        if layer.kind == "norm" and 1 < layer.groups < self.spaces.entries(value.layout):
            self.spaces.keep_within(value.layout, layer.groups)
        fits = [self._broadcast(param, value, axis) for param in params]
        return value if all(fits) else None

    def _norm_axis(self, layer: Layer, value: Read, params: Sequence[Param]) -> int | None:
        """Return the channel axis as the layer's parameters count it; None where it is disturbed."""
        if not isinstance(value, Value):
            return None
        if layer.kind == "pointwise" and layer.dims:
            along = from_end(layer.dims, value.rank)
            is_unknown = value.rank is None and max(along) >= 0
            return None if is_unknown or value.axis in along else value.axis
        if all(len(p.shape) > 1 or p.size == 1 for p in params):
            return value.axis
        (place,) = from_end(layer.dims[:1] or (1,), value.rank)
        if place == 1 and layer.kind == "norm" and layer.groups == 1:
            # A linear layer's output of unknown rank is taken to be (N, C) where a norm follows.
            place = -1
        if place == value.axis:
            return -1
        return value.axis if place < 0 and value.axis < -1 else None

    def _size(self, param: Param, axis: int) -> int:
        """Return how many channels a parameter has; 0 where it has no such axis."""
        return param.shape[axis] if len(param.shape) >= -axis and param.shape[axis] > 1 else 0

    def _broadcast(self, param: Param, value: Value, axis: int) -> bool:
        """Hold the axis of a parameter that meets the channels to their layout, if that fits."""
        size = self._size(param, axis)
        if size and (value.stretch or size != self.spaces.entries(value.layout)):
            self._stop([value], [param])
            return False
        self._use(param, {axis % len(param.shape): value.layout} if size else {})
        return True

    def _join(self, data: Sequence[Read], params: Sequence[Param]) -> Value | None:
        """Unify the channels of all values; those with one channel are broadcast."""
        values = [v for v in data if isinstance(v, Value)]
        wide = max(values, key=lambda v: self.spaces.entries(v.layout), default=None)
        if wide is None or len(values) < len(data):
            return self._stop(data, params)
        if any((v.axis, v.stretch) != (wide.axis, wide.stretch) for v in values):
            return self._stop(data, params)
        for value in values:
            if value is not wide and self.spaces.entries(value.layout) > 1:
                self.spaces.unify(wide.layout, value.layout)
        fits = [self._broadcast(param, wide, wide.axis) for param in params]
        ranks = [*(v.rank or 0 for v in values), *(len(p.shape) for p in params)]
        return replace(wide, rank=max(ranks) if all(ranks) else None) if all(fits) else None

    def _concat(self, layer: Layer, data: Sequence[Read]) -> Value | None:
        values = [v for v in data if isinstance(v, Value) and not v.stretch]
        if len(values) < len(data) or len({(v.axis, v.rank) for v in values}) != 1:
            return self._stop(data)
        along = from_end(layer.dims, values[0].rank)
        if values[0].axis in along:
            return replace(values[0], layout=sum((v.layout for v in values), ()))
        if any(a >= 0 for a in along) or not along:
            return self._stop(data)
        return self._join(values, ())

    def _reduce(self, layer: Layer, value: Read) -> Value | None:
        """Reduce axes; means, sums and maxima do not depend on the order of channels."""
        along = from_end(layer.dims, value.rank) if isinstance(value, Value) else ()
        if not isinstance(value, Value) or value.stretch or any(a >= 0 for a in along):
            return self._stop([value])
        return replace(value, layout=self.spaces.new(1)) if value.axis in along else value
