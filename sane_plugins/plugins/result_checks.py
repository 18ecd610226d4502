"""What is needed of each result: encodings, estimates, graphs, modules, what was written."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from sane_plugins.plugins.problems import AnswerError
from sane_plugins.plugins.requirements import (
    is_number,
    kind_of,
    require_name,
    require_share,
    require_types,
    shape_of,
    show_value,
    wrong,
)


def require_encoding(value: Any, device: str = "cpu") -> None:
    """Raise `AnswerError` unless it is an `Encoding` of finite numbers, on the device or the CPU."""
    import torch

    from sane_plugins.features import Encoding

    if not isinstance(value, Encoding):
        raise wrong(value, "an Encoding")
    require_types(
        value, {"embedding": torch.Tensor, "layers": torch.Tensor, "names": tuple, "encoder": str}
    )
    if not all(isinstance(name, str) for name in value.names):
        raise AnswerError("its names are not texts")
    _require_spans(value.spans, len(value.names))
    if value.embedding.ndim != 1:
        raise AnswerError(
            f"its embedding has shape {shape_of(value.embedding)}, and (E,) is needed"
        )
    if value.layers.ndim != 2 or len(value.layers) != len(value.names):
        raise AnswerError(
            f"its layers have shape {shape_of(value.layers)}, and ({len(value.names)}, E) is needed for"
            f" {len(value.names)} names"
        )
    tensors = {"embedding": value.embedding, "layers": value.layers, "latents": value.latents}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise AnswerError(f"its {name} are {kind_of(tensor)}")
        if tensor.device.type not in ("cpu", torch.device(device).type):
            raise AnswerError(f"its {name} are on {tensor.device}, and {device} was asked for")
        if tensor.layout != torch.strided or tensor.is_complex():
            raise AnswerError(f"its {name} are no dense tensor of real numbers")
        # Latents may be large, and what is not finite in them is not in their means either.
        if name != "latents" and not bool(torch.isfinite(tensor).all()):
            raise AnswerError(f"its {name} hold numbers that are not finite")
    if value.latents is not None and (
        value.latents.ndim != 2 or len(value.latents) != value.tokens
    ):
        raise AnswerError(
            f"its latents have shape {shape_of(value.latents)}, and ({value.tokens}, L) is needed"
        )


def _require_spans(spans: Any, names: int) -> None:
    if not isinstance(spans, list | tuple) or len(spans) not in (0, names):
        raise AnswerError(f"its spans are not a list of {names} token ranges, and not empty")
    for span in spans:
        is_pair = isinstance(span, list | tuple) and [type(x) for x in span] == [int, int]
        if not is_pair or not 0 <= span[0] <= span[1]:
            raise AnswerError("one of its spans is no range of tokens")


def require_estimate(value: Any) -> None:
    """Raise `AnswerError` unless it is an estimate that is whole."""
    from sane_plugins.properties import CategoryEstimate, Estimate

    if not isinstance(value, Estimate | CategoryEstimate):
        raise wrong(value, "an Estimate or a CategoryEstimate")
    require_types(value, {"property": str, "features": str})
    if type(value.in_distribution).__name__ not in ("bool", "bool_"):
        raise AnswerError(f"its in_distribution is {show_value(value.in_distribution)}")
    require_share(value.coverage, "coverage")
    if value.typicality is not None:
        require_share(value.typicality, "typicality")
    if isinstance(value, Estimate):
        require_types(value, {"unit": str})
        if not is_number(value.value) or not isfinite(value.value):
            raise AnswerError(
                f"its value is {show_value(value.value)}, and a finite number is needed"
            )
        _require_interval(value.interval)
        return
    require_types(value, {"value": str, "set": (tuple, list), "probabilities": Mapping})
    for name, share in value.probabilities.items():
        require_name(name)
        require_share(share, f"probability of {name}")
    for name in (value.value, *value.set):
        if name not in value.probabilities:
            raise AnswerError(f"{show_value(name)} is not among its probabilities")


def _require_interval(interval: Any) -> None:
    is_pair = isinstance(interval, tuple | list) and len(interval) == 2
    if not is_pair or not all(is_number(x) and not isnan(x) for x in interval):
        raise AnswerError(f"its interval is {show_value(interval)}, and two numbers are needed")
    if interval[0] > interval[1]:
        raise AnswerError("its interval ends before it begins")


def require_graph(answer: Any, arguments: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is a `WeightGraph` that holds together; that of the caller is its own."""
    from sane_plugins.weights import WeightGraph, find_fault

    if not isinstance(answer, WeightGraph):
        raise wrong(answer, "a WeightGraph")
    if answer is arguments.get("source"):
        return
    if (fault := find_fault(answer)) is not None:
        raise AnswerError(f"its graph is wrong: {fault}")


def require_module(answer: Any, _: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is a module."""
    from torch import nn

    if not isinstance(answer, nn.Module):
        raise wrong(answer, "a torch.nn.Module")


def require_written(answer: Any, arguments: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is the path that was asked for, and something is there."""
    if not isinstance(answer, str | Path):
        raise wrong(answer, "the path written")
    target = arguments.get("target")
    if target is not None and Path(answer) != Path(target):
        raise AnswerError(
            f"it wrote {show_value(str(answer))}, and {show_value(str(target))} was asked for"
        )
    if not Path(answer).exists():
        raise AnswerError(f"it wrote nothing to {show_value(str(answer))}")


def require_true(answer: Any, _: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is `True`."""
    if answer is not True:
        raise AnswerError(f"it returned {show_value(answer)}, and True or None is needed")


def require_paths(answer: Any, _: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is a list of paths."""
    if not isinstance(answer, list | tuple) or not all(isinstance(x, str | Path) for x in answer):
        raise wrong(answer, "a list of paths")


def require_initialization(answer: Any, _: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is an `Initialization` of a graph and a module."""
    from sane_plugins.initialize import Initialization

    if not isinstance(answer, Initialization):
        raise wrong(answer, "an Initialization")
    require_graph(answer.graph, {})
    require_module(answer.module, {})


def require_cost(answer: Any, _: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is a `NetworkCost` of whole numbers that are not negative."""
    from sane_plugins.cost import Latency, NetworkCost

    if not isinstance(answer, NetworkCost):
        raise wrong(answer, "a NetworkCost")
    require_types(answer, {"inputs": (tuple, list), "notes": (tuple, list)})
    names = ("parameters", "macs", "activations", "layers", "weight_bytes", "grouped_macs")
    unknown = ("peak_bytes", "moved_bytes")  # may be None
    for name in (*names, "operations", *unknown):
        value = getattr(answer, name)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not (is_count or (value is None and name in unknown)):
            raise AnswerError(f"its {name} is {show_value(value)}, and a count is needed")
    latency = answer.latency
    if latency is not None and not isinstance(latency, Latency):
        raise AnswerError(f"its latency is {show_value(latency)}, and a Latency is needed")


def require_encoding_asked_for(answer: Any, arguments: Mapping[str, Any]) -> None:
    """Raise `AnswerError` unless it is an encoding as the options of the call ask for."""
    options = arguments.get("options")
    require_encoding(answer, getattr(options, "device", "cpu"))


def require_nothing(answer: Any, _: Mapping[str, Any]) -> None:
    """Raise `AnswerError`: the hook answers nothing."""
    raise wrong(answer, "nothing")
