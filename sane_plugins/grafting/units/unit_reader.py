"""Read the units of a module: trace its connections, run it once, and describe each layer.

The method: docs/explanation/sane.md, section 15.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log2, prod

import torch
from torch import nn

from sane_plugins.grafting.connections import Connections
from sane_plugins.grafting.execution import (
    CONVOLUTIONS,
    NORMS,
    Execution,
    executions,
    in_evaluation,
)
from sane_plugins.grafting.units.blocks import Place, find_blocks
from sane_plugins.grafting.units.channel_axes import ChannelAxes
from sane_plugins.grafting.units.extra_tensors import extra_tensors
from sane_plugins.grafting.units.neighbors import Neighbors, key_of, required_key
from sane_plugins.grafting.units.unit import NetworkUnits, Unit
from sane_plugins.weights import WeightGraph, from_module


def read_units(module: nn.Module, images: torch.Tensor) -> NetworkUnits:
    """Read the units of a module, which runs once on two of the images (N, C, H, W) that it takes.

    The module is not changed. Layers that do not run are left out. Raises whatever its forward raises.
    """
    graph = from_module(module)
    runs = executions(module, images)
    calls = [run for run in runs if not isinstance(run.module, NORMS)]
    calls = [run for run in calls if key_of(graph, run.name, "weight") is not None]
    connections = Connections(module, graph)
    layers = [connections.reader_of(required_key(graph, run.name)) for run in calls]
    known = connections.are_known and all(layers)
    notes = () if known else ("connections are not known: layers are matched by their place",)
    axes = ChannelAxes(graph if known else None)
    last = next((i for i, run in enumerate(calls) if run.is_output), None)
    names = [run.name for run in calls]
    reach = connections.reach([x or "" for x in layers]) if known else {}
    plan = find_blocks(module, names, [*_separable(calls)], connections, reach, last)
    neighbors = Neighbors(module, graph, connections if known else None, runs)
    reader = _Reader(graph, neighbors, calls[:1], images)
    units: list[Unit] = []
    with in_evaluation(module):
        for number, (run, layer) in enumerate(zip(calls, layers, strict=True)):
            units.append(
                reader.unit(
                    run,
                    layer or run.name,
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
        extras=tuple(extra_tensors(graph, units, connections if known else None, reach)),
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
        graph: WeightGraph,
        neighbors: Neighbors,
        first: Sequence[Execution],
        images: torch.Tensor,
    ) -> None:
        self._graph, self._neighbors, self._first = graph, neighbors, first
        self._image = tuple(images.shape[1:])

    def unit(
        self,
        run: Execution,
        layer: str,
        axes: ChannelAxes,
        previous: Unit | None,
        *,
        block: int,
        place: Place,
        ends_gate: bool,
        ends_identity_block: bool,
    ) -> Unit:
        """Return the unit of one call, which is named `layer` among the connections."""
        module, weight = run.module, required_key(self._graph, run.name)
        shape = tuple(self._graph.tensors[weight].shape)
        is_linear = isinstance(module, nn.Linear)
        groups = int(getattr(module, "groups", 1))
        is_depthwise = _is_depthwise(module) and shape[0] == groups
        grid = () if is_linear else run.returned[2:]
        read = () if is_linear else run.read[2:]
        outputs = axes.outputs(weight, shape[0])
        is_image = self._reads_image(run, layer)
        positions = self._positions(run, axes, weight, previous, is_image) if is_linear else ()
        size = shape[1] * groups // prod(positions)  # channels that it reads
        inputs = axes.inputs(weight, size, groups, prod(positions), is_image=is_image)
        norm, scale, activation = self._neighbors.behind(run, layer, shape[0])
        return Unit(
            name=run.name,
            module=module,
            kind="linear" if is_linear else "depthwise" if is_depthwise else "conv",
            weight=weight,
            bias=key_of(self._graph, run.name, "bias"),
            kernel=shape[2:],
            stride=1 if is_linear else max(getattr(module, "stride", (1,))),
            groups=groups,
            inputs=outputs if is_depthwise else inputs,
            outputs=outputs,
            positions=positions,
            read=read,
            grid=grid,
            halvings=self._halvings(grid, shape[2:], previous),
            norm=norm,
            norm_before=self._neighbors.norm_before(layer),
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

    def _reads_image(self, run: Execution, layer: str) -> bool:
        """Return whether a layer reads the images, as they are or flattened."""
        if prod(run.read[1:]) != prod(self._image):
            return False
        return self._neighbors.reads_input(layer, default=run in self._first)

    def _positions(
        self,
        run: Execution,
        axes: ChannelAxes,
        weight: str,
        previous: Unit | None,
        is_image: bool,
    ) -> tuple[int, ...]:
        """Return the sides of the maps that are flattened before a linear layer, () where none are."""
        features = run.read[-1]
        if is_image and features == prod(self._image) and len(self._image) > 1:
            return self._image[1:]
        count = axes.repeats(weight)
        if count == 1 and not self._neighbors.are_known and previous is not None and previous.grid:
            channels = sum(axes.groups[x].size for x in previous.outputs)
            count = features // channels if features % channels == 0 else 1
        if count == 1:
            return ()
        side = round(count**0.5)
        return (side, side) if side * side == count else (1, count)
