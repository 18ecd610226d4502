"""Tensors whose values are not finite, of a size that no training gives, or all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

from sane_plugins.health.findings import Finding, some
from sane_plugins.health.tensor_profile import TensorProfile
from sane_plugins.weights import RUNNING, Layer, Param, WeightGraph

_HUGE = 1e4
_HUGE_RUNNING = 1e12  # variances of sounds and raw pixels grow to millions
_MOST_RATIO = 1e3  # of the largest value to the root mean square of all others
_LEAST_CONSTANT = 16  # values


def find_bad_values(graph: WeightGraph, profiles: Mapping[str, TensorProfile]) -> Iterator[Finding]:
    """Yield what is wrong with single values."""
    bad = [key for key, x in profiles.items() if x.unusable]
    owned = {param.key for param in graph.without_masks(bad).params} if bad else set[str]()
    if not_finite := [key for key in bad if key in owned]:
        count = sum(profiles[key].unusable for key in not_finite)
        values = "1 value" if count == 1 else f"{count:,} values"
        verb = "is" if count == 1 else "are"
        text = f"{values} of {some(not_finite)} {verb} NaN, infinite or beyond float32"
        yield Finding(kind="not_finite", severity="fault", text=text, places=tuple(not_finite))
    weights = [
        (layer, param)
        for layer in graph.layers
        for param in layer.params
        if param.key in profiles and not profiles[param.key].unusable
    ]
    huge = dict.fromkeys(p.key for layer, p in weights if _is_huge(layer, p, profiles[p.key]))
    if huge:
        largest = max(huge, key=lambda key: profiles[key].largest)
        value = f"{profiles[largest].largest:.3g}"
        text = f"{some([*huge])}: values far beyond the others, up to {value} in {largest}"
        yield Finding(kind="huge", severity="fault", text=text, places=tuple(huge))
    constant = dict.fromkeys(
        p.key for layer, p in weights if _is_matrix(layer, p) and profiles[p.key].is_constant
    )
    if constant:
        value = f"{profiles[next(iter(constant))].low:.3g}"
        text = f"all values of {some([*constant])} are the same ({value} in the first)"
        yield Finding(kind="constant", severity="fault", text=text, places=tuple(constant))


def _is_huge(layer: Layer, param: Param, x: TensorProfile) -> bool:
    if param.role in RUNNING:
        return x.largest > _HUGE_RUNNING
    if layer.kind == "parameter":  # settings and tables, such as a mask's -1e9, are no weights
        return False
    rest = max(x.power * x.size - x.largest**2, 0.0) / max(x.size - 1, 1)
    stands_out = _is_matrix(layer, param) and x.largest > _MOST_RATIO * sqrt(rest) > 0
    return x.largest > _HUGE or stands_out


def _is_matrix(layer: Layer, param: Param) -> bool:
    return (
        layer.kind not in ("parameter", "norm")
        and param.role not in RUNNING
        and param.size >= _LEAST_CONSTANT
        and sum(size > 1 for size in param.shape) > 1
    )
