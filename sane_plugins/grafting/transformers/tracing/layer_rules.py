"""Rules for operators with weights: norms, convolutions, linear layers.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sane_plugins.grafting.transformers.tracing.channel_nodes import UNKNOWN
from sane_plugins.grafting.transformers.tracing.run_record import RunRecord
from sane_plugins.grafting.transformers.tracing.steps import ContractionStep, NormStep, Step
from sane_plugins.grafting.transformers.tracing.traced_values import (
    Activation,
    Known,
    WeightView,
    varies,
)


def norm(run: RunRecord, name: str, args: Any) -> Known | None:
    """Return what a norm makes of a value."""
    value = run.find(args[0])
    if not isinstance(value, Activation):
        return None
    keys: list[str | None] = []
    is_flat = "layer" in name or "rms" in name
    dim = -1 if is_flat else 1
    line = value.channels.movedim(dim, -1).reshape(-1, value.channels.shape[dim])[0]
    for tensor in args[1:]:
        view = run.find(tensor) if isinstance(tensor, torch.Tensor) else None
        if isinstance(view, WeightView) and len(view.entries) == 1:
            run.nodes.unite(line, run.nodes.of(view.key, 0, view.entries[0]))
            keys.append(view.key)
    weight, bias, *_ = [*keys, None, None]
    step = NormStep(name=name, sources=(value.step,), weight=weight, bias=bias, channels=line)
    return replace(value, step=run.add(step), factor=1.0)


def convolution(run: RunRecord, args: Any, result: torch.Tensor) -> Known | None:
    """Return what a convolution makes of a value; None where it is transposed or has no weight."""
    value, view = run.find(args[0]), run.find(args[1])
    if not isinstance(value, Activation) or not isinstance(view, WeightView):
        return None
    groups, is_transposed = args[8], args[6]
    line = value.channels.flatten(2)[0, :, 0]
    rows, columns = (torch.arange(size) for size in run.shapes[view.key][:2])
    outputs = run.nodes.of(view.key, 0, rows)
    if is_transposed or len(run.shapes[view.key]) < 3:
        return None
    if groups == 1:
        run.nodes.unite(line, run.nodes.of(view.key, 1, columns))
    elif groups == len(line) == len(outputs):
        run.nodes.unite(line, outputs)
    bias = _bias(run, args[2], outputs)
    step = ContractionStep(
        name="convolution",
        sources=(value.step,),
        key=view.key,
        row_axis=0,
        column_axis=1,
        rows=rows,
        columns=columns,
        inputs=line,
        outputs=outputs,
        bias=bias,
        reads_image=value.reads_image,
        groups=groups,
        grid=(result.shape[2], result.shape[3]) if result.dim() == 4 else None,
    )
    channels = outputs.view(1, -1, *[1] * (result.dim() - 2)).expand(result.shape)
    return run.on_grid(channels, result, run.add(step))


def linear(
    run: RunRecord, value: Activation, view: WeightView, result: torch.Tensor, bias: Any
) -> Known | None:
    """Return what a product with a weight makes of a value (..., channels)."""
    column_axis, row_axis = view.axis_along(-2), view.axis_along(-1)
    channels, cells = value.channels, value.cells
    if column_axis is None or row_axis is None or column_axis == row_axis:
        return None
    rows, columns = view.along(row_axis, -1), view.along(column_axis, -2)
    outputs = run.nodes.of(view.key, row_axis, rows)
    if not varies(channels, -1):  # a product over tokens leaves the channels
        number = run.add(Step(name="linear", sources=(value.step,)))
        spread = channels[..., :1].expand(result.shape)
        unknown = torch.full(result.shape, UNKNOWN)
        return Activation(channels=spread, cells=unknown, step=number)
    run.nodes.unite(channels, run.nodes.of(view.key, column_axis, columns))
    pixels = _pixels(run, cells[0]) if value.reads_image else None
    step = ContractionStep(
        name="linear",
        sources=(value.step,),
        key=view.key,
        row_axis=row_axis,
        column_axis=column_axis,
        rows=rows,
        columns=columns,
        inputs=channels.reshape(-1, channels.shape[-1])[0],
        outputs=outputs,
        bias=_bias(run, bias, outputs),
        reads_image=value.reads_image,
        pixels=pixels,
        is_token_major=_is_token_major(cells[..., 0].flatten()),
    )
    places = _patch_cells(run, cells[..., 0]) if value.reads_image else cells[..., 0]
    return Activation(
        channels=outputs.expand(result.shape),
        cells=places[..., None].expand(result.shape),
        step=run.add(step),
    )


def _bias(run: RunRecord, tensor: Any, outputs: torch.Tensor) -> str | None:
    view = run.find(tensor) if isinstance(tensor, torch.Tensor) else None
    if not isinstance(view, WeightView) or len(view.entries) != 1:
        return None
    run.nodes.unite(outputs, run.nodes.of(view.key, 0, view.along(0, -1)))
    return view.key


def _pixels(run: RunRecord, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and columns of a patch's pixels, counted from its first."""
    rows, columns = cells // run.grid[1], cells % run.grid[1]
    return rows - rows.min(), columns - columns.min()


def _patch_cells(run: RunRecord, cells: torch.Tensor) -> torch.Tensor:
    """Return the places of patches in their grid, by the places (N, T) of their first pixels."""
    rows = torch.unique(cells // run.grid[1], return_inverse=True)
    columns = torch.unique(cells % run.grid[1], return_inverse=True)
    run.grid = (len(rows[0]), len(columns[0]))
    places: torch.Tensor = rows[1] * run.grid[1] + columns[1]
    return places


def _is_token_major(cells: torch.Tensor) -> bool:
    """Return whether cells (rows,) of two images alternate: the first token of both comes first."""
    count = len(cells) // 2
    return not torch.equal(cells[:count], cells[count:]) and torch.equal(cells[::2], cells[1::2])
