"""Read the units of a module: trace its connections, run it once, and describe each layer.

The method: docs/explanation/sane.md, section 15.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log2, prod

import torch
from torch import nn

from sane_plugins.grafting.blocks import Place, find_blocks
from sane_plugins.grafting.channel_axes import ChannelAxes
from sane_plugins.grafting.connections import Activation, Connections
from sane_plugins.grafting.execution import (
    CONVOLUTIONS,
    NORMS,
    Execution,
    executions,
    in_evaluation,
)
from sane_plugins.grafting.units import NetworkUnits, Norm, Unit
from sane_plugins.weights import WeightGraph, from_module, layer_name


def read_units(module: nn.Module, images: torch.Tensor) -> NetworkUnits:
    """Read the units of a module, which runs once on two of the images (N, C, H, W) that it takes.

    The module is not changed. Layers that do not run are left out. Raises whatever its forward raises.
    """
    graph = from_module(module)
    runs = executions(module, images)
    calls = [run for run in runs if not isinstance(run.module, NORMS)]
    calls = [run for run in calls if _key(graph, run.name, "weight") is not None]
    connections = Connections(module, graph)
    known = connections.are_known and all(run.name in connections.layers for run in calls)
    notes = () if known else ("connections are not known: layers are matched by their place",)
    axes = ChannelAxes(graph if known else None)
    last = next((i for i, run in enumerate(calls) if run.is_output), None)
    names = [run.name for run in calls]
    plan = find_blocks(module, names, [*_separable(calls)], connections if known else None, last)
    reader = _Reader(module, graph, connections if known else None, runs, images)
    units: list[Unit] = []
    with in_evaluation(module):
        for number, run in enumerate(calls):
            units.append(
                reader.unit(
                    run,
                    axes,
                    units[-1] if units else None,
                    block=plan.blocks[number],
                    place=plan.places[number],
                    ends_gate=number in plan.gate_ends,
                    ends_identity_block=number in plan.identity_ends,
                )
            )
    return NetworkUnits(
        graph=graph,
        units=tuple(units),
        groups=tuple(axes.groups),
        image=tuple(images.shape[1:]),
        is_traced=known,
        notes=notes,
    )


def _separable(calls: Sequence[Execution]) -> Iterator[tuple[int, ...]]:
    """Yield each depthwise convolution with the one behind it and one before it that have a single tap."""
    for number, (one, other) in enumerate(pairwise(calls)):
        if _is_depthwise(one.module) and _has_one_tap(other.module) and other.read == one.returned:
            before = calls[number - 1] if number else None
            if before and _has_one_tap(before.module) and before.returned == one.read:
                yield number - 1, number, number + 1
            else:
                yield number, number + 1


def _has_one_tap(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and max(module.kernel_size) == 1


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels > 1


class _Reader:
    """Describes one unit after the other."""

    def __init__(
        self,
        module: nn.Module,
        graph: WeightGraph,
        connections: Connections | None,
        runs: Sequence[Execution],
        images: torch.Tensor,
    ) -> None:
        self._modules = dict(module.named_modules())
        self._graph, self._connections, self._runs = graph, connections, runs
        self._first = next((x for x in runs if not isinstance(x.module, NORMS)), None)
        self._image = tuple(images.shape[1:])
        self._roles = {param.key: param.role for param in graph.params}
        self._norms: dict[str, Norm] = {}
        self._taken: set[str] = set()

    def unit(
        self,
        run: Execution,
        axes: ChannelAxes,
        previous: Unit | None,
        *,
        block: int,
        place: Place,
        ends_gate: bool,
        ends_identity_block: bool,
    ) -> Unit:
        """Return the unit of one call."""
        module, weight = run.module, _required_key(self._graph, run.name)
        shape = tuple(self._graph.tensors[weight].shape)
        is_linear = isinstance(module, nn.Linear)
        groups = int(getattr(module, "groups", 1))
        is_depthwise = _is_depthwise(module) and shape[0] == groups
        grid = () if is_linear else run.returned[2:]
        read = () if is_linear else run.read[2:]
        outputs = axes.outputs(weight, shape[0])
        positions = self._positions(run, axes, weight, previous) if is_linear else ()
        behind = self._behind(run.name)
        norm, scale, activation = self._followers(run, behind, shape[0])
        return Unit(
            name=run.name,
            module=module,
            kind="linear" if is_linear else "depthwise" if is_depthwise else "conv",
            weight=weight,
            bias=_key(self._graph, run.name, "bias"),
            kernel=shape[2:],
            stride=1 if is_linear else max(getattr(module, "stride", (1,))),
            groups=groups,
            inputs=outputs
            if is_depthwise
            else self._inputs(axes, weight, shape[1], groups, positions, run),
            outputs=outputs,
            positions=positions,
            read=read,
            grid=grid,
            halvings=self._halvings(grid, shape[2:], previous),
            norm=norm,
            norm_before=self._norm_before(run.name),
            scale=scale,
            activation=activation,
            block=block,
            place=place,
            ends_gate=ends_gate,
            ends_identity_block=ends_identity_block,
        )

    def _halvings(
        self, grid: tuple[int, ...], kernel: tuple[int, ...], previous: Unit | None
    ) -> float:
        """Return log2 of image side / grid side; a vector is as far down as what comes before it.

        So is a map of one pixel that a single tap reads: what was pooled, as a gate reads.
        """
        if not grid or not self._image[1:] or prod(grid) == prod(kernel) == 1:
            return previous.halvings if previous else 0.0
        return max(0.0, log2(prod(self._image[1:]) / prod(grid)) / len(grid))

    def _inputs(
        self,
        axes: ChannelAxes,
        weight: str,
        width: int,
        groups: int,
        positions: tuple[int, ...],
        run: Execution,
    ) -> tuple[int, ...]:
        """Return the groups of what a unit reads; its weight has `width` entries along that axis."""
        size = width * groups // prod(positions)
        is_image = self._reads_image(run)
        return axes.inputs(weight, size, groups, prod(positions), is_image=is_image)

    def _reads_image(self, run: Execution) -> bool:
        """Return whether a layer reads the images, as they are or flattened."""
        if self._connections is None:
            return run is self._first and prod(run.read[1:]) == prod(self._image)
        before = list(self._connections.before(run.name))[-1:]
        is_input = any(self._connections.layers[x].kind == "input" for x in before)
        return is_input and prod(run.read[1:]) == prod(self._image)

    def _positions(
        self, run: Execution, axes: ChannelAxes, weight: str, previous: Unit | None
    ) -> tuple[int, ...]:
        """Return the sides of the maps that are flattened before a linear layer, () where none are."""
        features = run.read[-1]
        image = self._image
        if self._reads_image(run) and features == prod(image) and len(image) > 1:
            return image[1:]
        count = axes.repeats(weight)
        if count == 1 and self._connections is None and previous is not None and previous.grid:
            channels = sum(axes.groups[x].size for x in previous.outputs)
            count = features // channels if features % channels == 0 else 1
        if count == 1:
            return ()
        side = round(count**0.5)
        return (side, side) if side * side == count else (1, count)

    def _behind(self, name: str) -> list[str]:
        return [] if self._connections is None else list(self._connections.behind(name))

    def _followers(
        self, run: Execution, behind: Sequence[str], channels: int
    ) -> tuple[Norm | None, str | None, Activation | None]:
        """Return the norm, the scale and the activation behind a unit."""
        if self._connections is None:
            return self._next_norm(run), None, None
        norm, scale = None, None
        for name in behind:
            layer = self._connections.layers[name]
            if layer.kind == "norm" and norm is None:
                norm = self._norm(name)
                self._taken.add(name)
            elif activation := self._connections.activation(name):
                return norm, scale, activation
            elif layer.kind == "join" and scale is None and self._connections.is_product(name):
                scale = self._vector(name, channels)
                if scale is None:
                    break
            elif layer.kind not in ("pointwise", "permute", "transpose") or layer.dims[:1] == (1,):
                break
        return norm, scale, None

    def _vector(self, name: str, channels: int) -> str | None:
        """Return the key of the vector that a layer multiplies by."""
        params = [] if self._connections is None else self._connections.params(name)
        return next((p.key for p in params if p.size == channels), None)

    def _next_norm(self, run: Execution) -> Norm | None:
        """Return the norm that runs right after a unit, where connections are not known."""
        names = [x.name for x in self._runs]
        after = self._runs[names.index(run.name) + 1 :][:1]
        if not after or not isinstance(after[0].module, NORMS) or after[0].read != run.returned:
            return None
        keys = {
            role: key
            for attribute in ("weight", "bias", "running_mean", "running_var")
            if (key := _key(self._graph, after[0].name, attribute))
            for role in (self._roles[key],)
        }
        return Norm(name=after[0].name, module=after[0].module, keys=keys) if keys else None

    def _norm_before(self, name: str) -> Norm | None:
        """Return the norm through which all passes that a unit reads, where it is behind no other unit."""
        if self._connections is None:
            return None
        for source in self._connections.before(name):
            if self._connections.layers[source].kind == "norm":
                return None if source in self._taken else self._norm(source)
        return None

    def _norm(self, name: str) -> Norm | None:
        """Return a norm layer that has tensors, always the same."""
        if self._connections is None:
            return None
        params = [p for p in self._connections.params(name) if p.role != "other"]
        if name not in self._norms and params:
            owner = layer_name(params[0].key)
            keys = {p.role: p.key for p in params}
            self._norms[name] = Norm(name=owner, module=self._modules.get(owner), keys=keys)
        return self._norms.get(name)


def _key(graph: WeightGraph, name: str, attribute: str) -> str | None:
    """Return the key of a layer's tensor in a graph, by its first name where it has several."""
    key = f"{name}.{attribute}" if name else attribute
    key = graph.ties.get(key, key)
    return key if key in graph.tensors and key not in graph.untouched else None


def _required_key(graph: WeightGraph, name: str) -> str:
    key = _key(graph, name, "weight")
    assert key is not None  # layers without were left out
    return key
