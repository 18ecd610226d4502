"""A network as plain lines, one per tensor: the same for the same weights, wherever the file lies.

Programs that compare text line by line, as git does, show with it which tensors changed. Columns are not
aligned: a line changes with its own tensor alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sane_plugins.inspection.survey import LayerStats, Survey
from sane_plugins.inspection.tensor_stats import TensorStats
from sane_plugins.weights import WeightGraph, tensor_digest

_DIGITS = 12  # of a digest: enough that two tensors of one network never share it by chance


def plain_lines(graph: WeightGraph, survey: Survey) -> Iterator[str]:
    """Yield the network's size, then each tensor: name, kind, shape, type, statistics and a digest.

    Tensors that are no weights follow with a digest where they can be read; tied ones with their owner.
    """
    yield f"{survey.parameters} parameters in {len(survey.tensors)} tensors"
    for layer in survey.layers:
        for tensor in layer.tensors:
            yield f"{_statistics(layer, tensor)}  {_digest(graph, tensor.key)}"
    for alias, owner in sorted(graph.ties.items()):
        yield f"{alias}  is {owner}"
    for key, reason in graph.untouched.items():
        values = graph.tensors.get(key)
        shape = "" if values is None else f"  {_shape(values.shape)} {_dtype(values)}"
        digest = "" if values is None else f"  {_digest(graph, key)}"
        yield f"{key}{shape}  not a weight: {reason}{digest}"


def _statistics(layer: LayerStats, tensor: TensorStats) -> str:
    parts = [
        tensor.key,
        f"{layer.label} {tensor.role.replace('_', ' ')} {_shape(tensor.shape)} {tensor.dtype}",
        f"mean {tensor.mean:.4g} deviation {tensor.deviation:.4g} zeros {tensor.zeros}",
    ]
    if tensor.nonfinite:
        parts.append(f"not finite {tensor.nonfinite}")
    if tensor.converted:
        parts.append(tensor.converted)
    return "  ".join(parts)


def _shape(shape: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, shape)) or "1"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(graph: WeightGraph, key: str) -> str:
    return f"sha256 {tensor_digest(graph.tensors[key])[:_DIGITS]}"
