"""The laws by which libraries draw initial weights.

The method: docs/explanation/sane.md, section 9.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, prod, sqrt

import numpy as np
from scipy import special, stats

from sane_plugins.health.tensor_profile import Array
from sane_plugins.weights import Layer, Param

_TORCH_GAIN = 1 / 3  # of torch's own layers: uniform within 1 / sqrt(inputs)
_GAINS = {"": 1.0, ", gain of ReLU": 2.0, ", gain of tanh": 25 / 9, ", gain of SELU": 9 / 16}
_DEVIATIONS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
_CUT = 2.0  # deviations at which truncated normals are cut
_CUT_MASS = 2 * special.ndtr(_CUT) - 1
_CUT_VARIANCE = float(stats.truncnorm.var(-_CUT, _CUT))


@dataclass(frozen=True)
class LawFamily:
    """A shape of distribution, scaled to mean 0 and variance 1: distribution function, kurtosis, bound."""

    name: str
    distribution: Callable[[Array], Array]
    kurtosis: float
    bound: float = inf


def _uniform(x: Array) -> Array:
    return np.clip((x / sqrt(3) + 1) / 2, 0, 1)


def _normal(x: Array) -> Array:
    return np.asarray(special.ndtr(x))


def _truncated(x: Array) -> Array:
    inside = special.ndtr(x * sqrt(_CUT_VARIANCE)) - special.ndtr(-_CUT)
    return np.asarray(np.clip(inside / _CUT_MASS, 0, 1))


UNIFORM = LawFamily("uniform", _uniform, 1.8, sqrt(3))
NORMAL = LawFamily("normal", _normal, 3.0)
TRUNCATED = LawFamily(
    "truncated normal",
    _truncated,
    3 + float(stats.truncnorm.stats(-_CUT, _CUT, moments="k")),
    _CUT / sqrt(_CUT_VARIANCE),
)
FAMILIES = (UNIFORM, NORMAL, TRUNCATED)


@dataclass(frozen=True)
class Law:
    """A distribution that a tensor may have been drawn from.

    Tensors of one network that are drawn alike share the `recipe`, whatever their shapes.
    """

    recipe: str
    family: LawFamily
    variance: float


def known_laws(layer: Layer, param: Param) -> Iterator[Law]:
    """Yield the laws by which libraries draw a matrix of this shape in this kind of layer."""
    places = prod(param.shape[2:])
    inputs, outputs = param.shape[1] * places, param.shape[0] * places
    torch_fans = {"inputs": float(inputs), "outputs": float(outputs)}  # a matrix may lie transposed
    if layer.kind == "recurrent":  # rows of one, three or four gates
        torch_fans |= {"three gates": outputs / 3, "four gates": outputs / 4}
    for fan, count in torch_fans.items():
        yield Law(f"torch's default, by {fan}", UNIFORM, _TORCH_GAIN / count)
    fans = {
        "inputs": inputs,
        "outputs": outputs,
        "inputs and outputs": (inputs + outputs) / 2,
        "outputs of a group": outputs / layer.groups,
    }
    for family in FAMILIES:
        for fan, count in fans.items():
            for name, gain in _GAINS.items():
                yield Law(f"{family.name} by {fan}{name}", family, gain / count)
    for deviation in _DEVIATIONS:
        yield from fixed_laws(deviation)


def fixed_laws(deviation: float) -> Iterator[Law]:
    """Yield laws of one deviation for all shapes: normal, cut at twice of it, and uniform within it."""
    yield Law(f"normal of deviation {deviation:g}", NORMAL, deviation**2)
    cut = deviation**2 * _CUT_VARIANCE
    yield Law(f"normal of deviation {deviation:g}, truncated at twice that", TRUNCATED, cut)
    yield Law(f"uniform within {deviation:g}", UNIFORM, deviation**2 / 3)


torch_bias = partial(Law, "torch's default", UNIFORM)
