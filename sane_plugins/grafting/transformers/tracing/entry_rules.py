"""Rules for operators that move, add or multiply entries, or reduce axes.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch

from sane_plugins.grafting.transformers.tracing.channel_nodes import UNKNOWN
from sane_plugins.grafting.transformers.tracing.run_record import SOFTMAX, RunRecord
from sane_plugins.grafting.transformers.tracing.steps import (
    Step,
    SumStep,
    TableStep,
    TokenStep,
    VectorStep,
)
from sane_plugins.grafting.transformers.tracing.traced_values import (
    Activation,
    Known,
    WeightView,
    moved,
    tensors_in,
    varies,
)

_SPATIAL = ("pool", "upsample")


def move(run: RunRecord, func: Any, args: Any, kwargs: Any) -> list[Known | None]:
    """Return what is known of the results of an operator that moves or joins entries."""
    parts = [(t, run.find(t)) for t in tensors_in((args, kwargs))]
    if any(isinstance(k, Activation) for _, k in parts):
        for tensor, known in parts:
            if isinstance(known, WeightView):
                run.set(tensor, _as_token(run, known))
        activations = [k for t, _ in parts if isinstance(k := run.find(t), Activation)]
        found = moved(func, args, kwargs, run.find)
        sources = {a.step: None for a in activations}
        if len(sources) > 1:
            _unite_parts(run, func, args, activations)
            step = run.add(Step(name="join", sources=tuple(sources)))
            return [replace(k, step=step) if isinstance(k, Activation) else k for k in found]
        return found
    return moved(func, args, kwargs, run.find)


def _unite_parts(run: RunRecord, func: Any, args: Any, activations: list[Activation]) -> None:
    """Unite the channels of concatenated tokens: those of parts joined along another axis."""
    if func.overloadpacket.__name__ != "cat":
        return
    dim = args[1] if len(args) > 1 else 0
    firsts = [a.channels.select(dim, 0) for a in activations if a.channels.numel()]
    is_other_axis = all(not varies(run.nodes.roots(a.channels), dim) for a in activations)
    if is_other_axis and all(len(torch.unique(first)) > 1 for first in firsts):
        for first in firsts[1:]:
            run.nodes.unite(firsts[0], first)


def _as_token(run: RunRecord, view: WeightView) -> Activation:
    """Return a parameter as a value: its longest axis holds the channels, or its last."""
    shape = run.shapes[view.key]
    axis = max(range(len(shape)), key=lambda a: (shape[a], a))
    if sum(size > 1 for size in shape) > 1:
        axis = len(shape) - 1
    channels = run.nodes.of(view.key, axis, view.entries[axis])
    step = run.add(TokenStep(name="token", sources=(), key=view.key, axis=axis))
    return Activation(channels=channels, cells=torch.full_like(channels, UNKNOWN), step=step)


def weights_only(name: str, known: list[Known | None], result: torch.Tensor) -> Known | None:
    """Return a sum of parameters; other functions of them are not understood."""
    views = [k for k in known if isinstance(k, WeightView)]
    shapes = {view.entries[0].shape for view in views}
    if name in ("add", "add_") and len(views) == 2 and shapes == {result.shape}:
        return replace(views[0], added=(*views[0].added, views[1], *views[1].added))
    return None


def pointwise(
    run: RunRecord, name: str, args: Any, known: list[Known | None], result: torch.Tensor
) -> Known:
    """Return what an operator makes of entries one by one, from up to two values and parameters."""
    activations = [k for k in known if isinstance(k, Activation)]
    views = [k for k in known if isinstance(k, WeightView)]
    first = activations[0]
    made = _spread(first, result.shape)
    if len(activations) == 2:
        other = _spread(activations[1], result.shape)
        run.nodes.unite(made.channels, other.channels)
        channels = torch.where(made.channels < 0, other.channels, made.channels)
        cells = torch.where(made.cells < 0, other.cells, made.cells)
        sources = (first.step, other.step)
        step = Step(name=name, sources=sources)
        if name in ("add", "add_"):
            step = SumStep(
                name=name,
                sources=sources,
                channels=_line(channels),
                cells=cells[0, ..., 0].flatten(),
                grid=run.grid,
            )
        number = run.add(step)
        run.inherit_scores(first.step, number)
        return Activation(channels=channels, cells=cells, step=number)
    for view in views:
        for part in (view, *view.added):
            made = _with_parameter(run, name, made, part)
    if views:
        return made
    factor = _factor(name, args)
    if factor is not None:
        return replace(made, factor=made.factor * factor)
    if name in ("add", "add_", "sub", "masked_fill", "where"):  # of a mask or a constant
        return made
    number = run.add(Step(name=name, sources=(made.step,)))
    if name in SOFTMAX:
        run.inherit_scores(made.step, number, made.factor)
    return replace(made, step=number, factor=1.0)


def _with_parameter(run: RunRecord, name: str, value: Activation, view: WeightView) -> Activation:
    shape = value.channels.shape
    entries = [entry.expand(shape) for entry in view.entries]
    axis = _channel_axis(run, value, entries)
    sources = (value.step,)
    if axis is None or name not in ("add", "add_", "mul", "mul_", "sub", "div"):
        number = run.add(Step(name=name, sources=sources))
        if name in ("add", "add_"):  # a bias of the scores, by relative position
            run.inherit_scores(value.step, number)
        return replace(value, step=number)
    nodes = run.nodes.of(view.key, axis, entries[axis])
    run.nodes.unite(value.channels, nodes)
    channels = torch.where(value.channels < 0, nodes, value.channels)
    value = replace(value, channels=channels)
    if sum(size > 1 for size in run.shapes[view.key]) == 1:
        is_factor = name.startswith(("mul", "div"))
        step: Step = VectorStep(name=name, sources=sources, key=view.key, is_factor=is_factor)
    else:
        cells = _cells_of(run, view.key, axis, entries, value.cells)
        step = TableStep(
            name=name, sources=sources, key=view.key, axis=axis, cells=cells, grid=run.grid
        )
    return replace(value, step=run.add(step))


def _channel_axis(run: RunRecord, value: Activation, entries: list[torch.Tensor]) -> int | None:
    """Return the parameter's axis along which its numbers belong to the value's channels."""
    candidates = [a for a, entry in enumerate(entries) if int(entry.max()) > 0]
    if len(candidates) == 1:
        return candidates[0]
    roots = run.nodes.roots(value.channels)
    for axis in candidates:
        pairs = torch.stack((roots, entries[axis]), -1).flatten(0, -2)
        pairs = torch.unique(pairs[(pairs >= 0).all(-1)], dim=0)
        ones, others = (len(torch.unique(pairs[:, i])) for i in (0, 1))
        if len(pairs) == ones == others > 1:
            return axis
    return None


def _cells_of(
    run: RunRecord, key: str, axis: int, entries: list[torch.Tensor], cells: torch.Tensor
) -> torch.Tensor:
    """Return the cell of each place of a table, in the order of its axes without the channels'."""
    sizes = [size for a, size in enumerate(run.shapes[key]) if a != axis]
    place = torch.zeros(cells.shape, dtype=torch.int64)
    for size, entry in zip(sizes, entries[:axis] + entries[axis + 1 :], strict=True):
        place = place * size + entry
    found = torch.full((prod(sizes),), UNKNOWN)
    used = torch.stack([e.expand(cells.shape) for e in entries]).amin(0) >= 0
    found[place[used]] = cells[used]
    return found


def _spread(value: Activation, shape: torch.Size) -> Activation:
    return replace(value, channels=value.channels.expand(shape), cells=value.cells.expand(shape))


def reduced(
    run: RunRecord, name: str, args: Any, kwargs: Any, value: Activation, result: torch.Tensor
) -> Known | None:
    """Return what a mean or sum over axes, a pooling or a resize makes of a value."""
    number = run.add(Step(name=name, sources=(value.step,)))
    unknown = torch.full(result.shape, UNKNOWN)
    if any(part in name for part in _SPATIAL) and result.dim() == value.channels.dim() >= 3:
        firsts = value.channels.flatten(2)[:, :, :1]
        channels = firsts.view(*firsts.shape[:2], *[1] * (result.dim() - 2))
        return run.on_grid(channels.expand(result.shape), result, number)
    if name in ("mean", "sum", "amax", "amin") and len(args) > 1:
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        dims = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        low, high = (
            f(run.nodes.roots(value.channels), dims, keep) for f in (torch.amin, torch.amax)
        )
        channels = torch.where(low == high, low, unknown)
        return Activation(channels=channels, cells=unknown, step=number)
    if result.dim() == value.channels.dim() and result.numel() > value.channels.numel():
        spread = torch.broadcast_shapes(value.channels.shape, result.shape) == result.shape
        if spread:
            return replace(_spread(value, result.shape), step=number)
    return Activation(channels=unknown, cells=unknown, step=number)


def _line(channels: torch.Tensor) -> torch.Tensor:
    """Return the nodes along the axis on which they change, at the first place of the others."""
    dims = [d for d in range(channels.dim()) if varies(channels, d)]
    dim = dims[-1] if dims else -1
    return channels.movedim(dim, -1).reshape(-1, channels.shape[dim])[0]


def _factor(name: str, args: Any) -> float | None:
    """Return the number that a value is multiplied by, if that is all that is done."""
    if len(args) < 2 or name not in ("mul", "mul_", "div", "div_"):
        return None
    number = args[1]
    if isinstance(number, torch.Tensor):
        if number.numel() != 1:
            return None
        number = number.item()
    return float(number) if name.startswith("mul") else 1.0 / float(number)
