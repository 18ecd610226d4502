"""Networks that a zoo's factories build, and how their tensors fit what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import nn

from sane_plugins.architectures import Size, Trust, build
from sane_plugins.errors import ZooError
from sane_plugins.formats import from_state_dict
from sane_plugins.runtime import drawing_from
from sane_plugins.weights import WeightGraph, computes_tensors, from_module, load_into

# What a network may build beside what is stored: counters, and buffers that are not saved.
SPARE = Size(values=2**20, tensors=2**7)
_TensorSpecs = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


def weight_mismatch(factory: Mapping[str, Any], graph: WeightGraph, trust: Trust) -> str:
    """Describe which weights of a network differ from what a factory builds; empty if none do."""
    given = {param.key: param.shape for param in graph.params}
    most = size_limit(prod(shape) for shape in given.values())
    expected = _parameter_shapes(json.dumps(dict(factory)), trust, most)
    mismatched = [
        key for key in dict.fromkeys([*expected, *given]) if expected.get(key) != given.get(key)
    ]
    more = f" and {len(mismatched) - 3} more" if len(mismatched) > 3 else ""
    return f"differ in {', '.join(mismatched[:3])}{more}" if mismatched else ""


def size_limit(stored: Iterable[int]) -> Size:
    """Return how large a network may be whose tensors hold so many values each."""
    counts = [*stored]
    return Size(2 * sum(counts) + SPARE.values, 2 * len(counts) + SPARE.tensors)


def build_unseeded(factory: str, trust: Trust, most: Size) -> nn.Module:
    """Build a network whose initial weights nobody sees, without drawing from the global generator."""
    with drawing_from(torch.Generator()):
        return build(json.loads(factory), trust, most=most)


@lru_cache(maxsize=64)
def _parameter_shapes(factory: str, trust: Trust, most: Size) -> Mapping[str, tuple[int, ...]]:
    module = build_unseeded(factory, trust, most)
    return {p.key: p.shape for p in from_module(module).params}


@lru_cache(maxsize=64)
def tensor_names(factory: str, trust: Trust, most: Size) -> tuple[str, ...]:
    """Return an architecture's tensor names, in order."""
    return tuple(build_unseeded(factory, trust, most).state_dict())


@lru_cache(maxsize=64)
def template_graph(factory: str, specs: _TensorSpecs, trust: Trust) -> WeightGraph:
    """Return an architecture's graph, traced once and cached; entries differ only in tensors."""
    most = size_limit(prod(shape) for _, _, shape in specs)
    module = build_unseeded(factory, trust, most)
    state = {key: torch.zeros(shape, dtype=dtype) for key, dtype, shape in specs}
    if not computes_tensors(module):  # a norm of weights cannot give zeros
        load_state(module, state, json.loads(factory)["name"])
    return from_module(module)


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], place: str) -> None:
    """Load tensors into a module, adopting their dtypes; integer counters may be missing or extra."""
    if computes_tensors(module):
        load_into(module, from_state_dict(state, place))
        return
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in state and state[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    expected = module.state_dict()
    mismatched = [
        key
        for key in dict.fromkeys([*expected, *state])
        if (
            expected.get(key, state.get(key)).is_floating_point()  # type: ignore[union-attr]
            and (key not in expected or key not in state)
        )
        or (key in expected and key in state and expected[key].shape != state[key].shape)
    ]
    if mismatched:
        raise ZooError(
            place,
            f"its factory builds a network that differs in {', '.join(mismatched[:4])}",
            "names and shapes of all weights must fit",
            "add it again with the right --factory",
        )
    module.load_state_dict(state, strict=False)
