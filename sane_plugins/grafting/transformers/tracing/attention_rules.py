"""Rules for attention: fused operators, and products of values around a softmax.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sane_plugins.grafting.transformers.tracing.channel_nodes import UNKNOWN
from sane_plugins.grafting.transformers.tracing.run_record import RunRecord
from sane_plugins.grafting.transformers.tracing.steps import AttentionStep, Step
from sane_plugins.grafting.transformers.tracing.traced_values import Activation, Known, varies


def fused_attention(
    run: RunRecord, name: str, args: Any, kwargs: Any, result: torch.Tensor
) -> Known | None:
    """Return what torch's operator for attention makes of queries, keys and values."""
    parts = [run.find(tensor) for tensor in args[:3]]
    if not all(isinstance(part, Activation) for part in parts):
        return None
    queries, keys, values = (part for part in parts if isinstance(part, Activation))
    scale = kwargs.get("scale") or queries.channels.shape[-1] ** -0.5
    nodes = (queries.channels, keys.channels, values.channels)
    factor = scale * queries.factor * keys.factor
    step = _attend(run, name, (queries, keys, values), [n[..., 0, :] for n in nodes], factor)
    return Activation(
        channels=values.channels[..., :1, :].expand(result.shape),
        cells=queries.cells[..., :1].expand(result.shape),
        step=step,
    )


def mix(
    run: RunRecord, name: str, one: Activation, other: Activation, result: torch.Tensor
) -> Known | None:
    """Products of two values: of queries with keys, or of attention with values."""
    unknown = torch.full(result.shape, UNKNOWN)
    if one.step in run.scores and result.shape[-1] == other.channels.shape[-1]:
        queries, keys, factor = run.scores[one.step]
        values = other.channels[..., 0, :]
        if len(values) == len(queries):
            step = _attend(run, name, (one, other), [queries, keys, values], factor)
            channels = other.channels[..., :1, :].expand(result.shape)
            cells = _query_cells(one, result)
            return Activation(channels=channels, cells=cells, step=step)
    number = run.add(Step(name=name, sources=(one.step, other.step)))
    if varies(one.channels, -1) and varies(other.channels, -2):
        left, right = one.channels[..., 0, :], other.channels[..., :, 0]
        run.scores[number] = (left, right, one.factor * other.factor)
    return Activation(channels=unknown, cells=_query_cells(one, result), step=number)


def _attend(
    run: RunRecord,
    name: str,
    parts: tuple[Activation, ...],
    nodes: Sequence[torch.Tensor],
    factor: float,
) -> int:
    """Add a step of attention by the nodes (..., C) of queries, keys and values."""
    sources = tuple({part.step: None for part in parts})
    rows = (map(tuple, n.flatten(0, -2).tolist()) for n in nodes)
    heads = list(dict.fromkeys(zip(*rows, strict=False)))
    queries, keys, values = (torch.tensor([head[i] for head in heads]) for i in range(3))
    step = AttentionStep(
        name=name, sources=sources, queries=queries, keys=keys, values=values, factor=factor
    )
    return run.add(step)


def _query_cells(scores: Activation, result: torch.Tensor) -> torch.Tensor:
    return scores.cells[..., :1].expand(result.shape)
