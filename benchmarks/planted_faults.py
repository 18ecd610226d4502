"""Faults that `health.py` plants in networks: each changes a graph at a random place, or gives None where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import init

from sane_plugins.weights import RUNNING, Layer, Param, WeightGraph

LEAST_REDRAWN = 1_000  # values of a layer that is redrawn alone: of less, nothing is claimed
Change = Callable[[WeightGraph, torch.Generator], WeightGraph | None]


def matrices(graph: WeightGraph, least: int = 64, rows: int = 4) -> list[tuple[Layer, Param]]:
    """Return the weight matrices of layers with at least so many values and rows, in network order."""
    return [
        (layer, p)
        for layer in graph.layers
        for p in layer.params
        if layer.kind not in ("parameter", "norm")
        and p.role not in RUNNING
        and sum(n > 1 for n in p.shape) > 1
        and p.size >= least
        and p.shape[p.axis] >= rows
    ]


def pick(items: list[Any], rng: torch.Generator) -> Any:
    """Return one of the items at random, or None of none."""
    return items[int(torch.randint(len(items), (1,), generator=rng))] if items else None


def with_value(value: float) -> Change:
    """Return what sets a single weight to a value."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        _, param = pick(matrices(graph), rng)
        tensor = graph.tensors[param.key].clone(memory_format=torch.contiguous_format)
        tensor.view(-1)[int(torch.randint(tensor.numel(), (1,), generator=rng))] = value
        return graph.replace({param.key: tensor})

    return change


def constant(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
    """Fill a matrix with its mean."""
    _, param = pick(matrices(graph), rng)
    tensor = graph.tensors[param.key]
    return graph.replace({param.key: torch.full_like(tensor, float(tensor.mean()))})


def redrawn(layer: Layer, rng: torch.Generator, law: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer as a library draws them: by torch's default, kaiming or xavier."""
    new: dict[str, torch.Tensor] = {}
    fan = 0
    for param in layer.params:
        tensor = torch.zeros(param.shape)
        if layer.kind == "norm" or param.role in RUNNING:
            tensor.fill_(float(param.role in ("scale", "running_var")))
        elif len(param.shape) > 1:
            fan = param.size // param.shape[0]
            if law == "torch":
                init.kaiming_uniform_(tensor, a=5**0.5, generator=rng)
            elif law == "kaiming":
                init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=rng)
            else:
                init.xavier_uniform_(tensor, generator=rng)
        elif law == "torch" and fan:
            tensor.uniform_(-(fan**-0.5), fan**-0.5, generator=rng)
        new[param.key] = tensor
    return new


def untrained(law: str) -> Change:
    """Return what redraws all of a network."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        return graph.replace(
            {k: x for layer in graph.layers for k, x in redrawn(layer, rng, law).items()}
        )

    return change


def half_loaded(law: str) -> Change:
    """Return what redraws a random half of the layers, with their norms."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        layers = [layer for layer in graph.layers if layer.params]
        chosen = torch.randperm(len(layers), generator=rng)[: len(layers) // 2].tolist()
        return graph.replace(
            {k: x for i in chosen for k, x in redrawn(layers[i], rng, law).items()}
        )

    return change


def one_redrawn(law: str) -> Change:
    """Return what redraws one layer that is not the last."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        large = [x for x in matrices(graph)[:-1] if x[1].size >= LEAST_REDRAWN]
        chosen = pick(large, rng)
        return graph.replace(redrawn(chosen[0], rng, law)) if chosen else None

    return change


def fresh_classifier(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
    """Redraw the last layer."""
    layer, param = matrices(graph, 1, 1)[-1]
    if param.size < LEAST_REDRAWN // 2:
        return None
    return graph.replace(redrawn(layer, rng, "torch"))


def dead_rows(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
    """Set most rows of a matrix, and their biases, to zero."""
    _, param = pick(matrices(graph), rng)
    rows = torch.randperm(param.shape[param.axis], generator=rng)
    rows = rows[: round(0.7 * len(rows))]
    new = {param.key: graph.tensors[param.key].clone().movedim(param.axis, 0)}
    new[param.key][rows] = 0
    return graph.replace({param.key: new[param.key].movedim(0, param.axis).contiguous()})


def in_norm(role: str, value: float, share: float) -> Change:
    """Return what sets a share of one vector of a norm to a value."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        vectors = [
            p
            for layer in graph.layers
            for p in layer.params
            if layer.kind == "norm" and p.role == role
        ]
        param = pick([p for p in vectors if p.size >= 4], rng)
        if param is None:
            return None
        tensor = graph.tensors[param.key].clone(memory_format=torch.contiguous_format)
        count = max(1, round(share * param.size))
        tensor.view(-1)[torch.randperm(param.size, generator=rng)[:count]] = value
        return graph.replace({param.key: tensor})

    return change


def unmeasured(graph: WeightGraph, _: torch.Generator) -> WeightGraph | None:
    """Reset all running statistics, as where a file has parameters alone."""
    new = {
        p.key: torch.full(p.shape, float(p.role == "running_var"))
        for layer in graph.layers
        for p in layer.params
        if p.role in RUNNING
    }
    return graph.replace(new) if new else None


FAULTS: dict[str, tuple[str, Change]] = {
    "one NaN": ("not_finite", with_value(float("nan"))),
    "one infinity": ("not_finite", with_value(float("inf"))),
    "one value of a million": ("huge", with_value(1e6)),
    "a constant matrix": ("constant", constant),
    "never trained, torch's default": ("never_trained", untrained("torch")),
    "never trained, kaiming normal": ("never_trained", untrained("kaiming")),
    "never trained, xavier uniform": ("never_trained", untrained("xavier")),
    "half of the layers drawn, torch's default": ("half_loaded", half_loaded("torch")),
    "half of the layers drawn, kaiming normal": ("half_loaded", half_loaded("kaiming")),
    "one layer drawn, torch's default": ("half_loaded", one_redrawn("torch")),
    "one layer drawn, xavier uniform": ("half_loaded", one_redrawn("xavier")),
    "a fresh classifier (a note)": ("fresh_classifier", fresh_classifier),
    "70 % of a layer's rows zero": ("dead_channels", dead_rows),
    "70 % of a norm's scales zero": ("dead_channels", in_norm("scale", 0.0, 0.7)),
    "variances zero": ("collapsed_norm", in_norm("running_var", 0.0, 1.0)),
    "one negative variance": ("negative_variance", in_norm("running_var", -1e-3, 0.0)),
    "running statistics lost": ("unmeasured_norm", unmeasured),
}
