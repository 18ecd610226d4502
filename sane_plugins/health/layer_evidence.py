"""What tells of one layer whether it was trained: its matrix, its bias, the vectors of its norm.

The method: docs/explanation/sane.md, section 9.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from sane_plugins.health.drawn import UNKNOWN, fitting_recipes, is_initial_bias
from sane_plugins.health.initial_laws import known_laws
from sane_plugins.health.tensor_profile import TensorProfile
from sane_plugins.weights import RUNNING, Layer, Param

_LEAST_MATRIX = 64  # values, of fewer nothing is said
_UNIFORM_NEEDS = 500  # values: their bound is sharp, which trained ones do not keep
_CONSTANT_BIAS_NEEDS = 1_000  # values, beside a bias that no step has moved
_NORMAL_NEEDS = 1 << 14  # values: small networks that learn slowly look normal for long
_LEAST_BIAS = 4  # values of a constant bias that mean something
_INITIAL = {"scale": (0.0, 1.0), "shift": (0.0,), "running_mean": (0.0,), "running_var": (1.0,)}


@dataclass(frozen=True, kw_only=True)
class LayerEvidence:
    """A layer with weights: how many values they have, and which recipes they may have been drawn by.

    `weight_of` gives by recipe how much the layer tells for it: 1 is enough. `is_trained`: it was drawn by
    none, or a vector of it has moved. `is_fresh_norm`: every vector of a norm is what it begins with.
    """

    name: str
    kind: str
    values: int
    weight_of: Mapping[str, float]
    is_trained: bool = False
    is_fresh_norm: bool = False

    @property
    def is_matrix(self) -> bool:
        """Return whether the layer has a matrix that tells something."""
        return self.values >= _LEAST_MATRIX and not self.is_norm

    @property
    def is_norm(self) -> bool:
        """Return whether it is a norm."""
        return self.kind == "norm"


def read_evidence(layer: Layer, profiles: Mapping[str, TensorProfile]) -> LayerEvidence | None:
    """Weigh a layer; None for one without weights of its own, or whose values cannot be used."""
    own = [param for param in layer.params if param.key in profiles]
    if not own or any(profiles[param.key].unusable for param in own):
        return None
    if layer.kind == "norm" or any(param.role in RUNNING for param in own):
        return _norm_evidence(layer, own, profiles)
    matrices = [param for param in own if _is_matrix(param)]
    if not matrices:
        return None
    return _matrix_evidence(layer, matrices, own, profiles)


def _norm_evidence(
    layer: Layer, params: list[Param], profiles: Mapping[str, TensorProfile]
) -> LayerEvidence:
    fresh = all(
        profiles[p.key].is_constant and profiles[p.key].low in _INITIAL.get(p.role, ())
        for p in params
    )
    learned = [p for p in params if p.role in ("scale", "shift")]
    moved = any(not profiles[p.key].is_constant for p in learned)
    return LayerEvidence(
        name=layer.name,
        kind="norm",
        values=sum(p.size for p in params),
        weight_of={},
        is_trained=moved,
        is_fresh_norm=fresh and bool(learned) and layer.kind == "norm",
    )


def _matrix_evidence(
    layer: Layer,
    matrices: list[Param],
    own: list[Param],
    profiles: Mapping[str, TensorProfile],
) -> LayerEvidence:
    values = sum(p.size for p in matrices)
    recipes = [
        fitting_recipes(profiles[p.key], known_laws(layer, p))
        for p in matrices
        if not profiles[p.key].is_constant
    ]
    vectors = [p for p in own if p.role == "bias"]
    largest = max(matrices, key=lambda p: p.size)
    hidden = [float(prod(largest.shape[1:])), float(largest.shape[0])]
    hidden += [n / gates for n in largest.shape[:2] for gates in (3, 4)]
    is_moved = any(
        not is_initial_bias(profiles[p.key], profiles[largest.key], hidden) for p in vectors
    )
    has_constant_bias = any(p.size >= _LEAST_BIAS and profiles[p.key].is_constant for p in vectors)
    weight_of: dict[str, float] = {}
    if not is_moved:
        for param, found in zip(
            (p for p in matrices if not profiles[p.key].is_constant), recipes, strict=True
        ):
            for recipe in found:
                needed = _needed(recipe, has_constant_bias)
                weight_of[recipe] = weight_of.get(recipe, 0.0) + param.size / needed
    return LayerEvidence(
        name=layer.name,
        kind=layer.kind,
        values=values,
        weight_of=weight_of,
        # A parameter by itself may be a table that nobody draws or trains, such as of places.
        is_trained=values >= _LEAST_MATRIX
        and layer.kind != "parameter"
        and (is_moved or not all(recipes)),
    )


def _needed(recipe: str, has_constant_bias: bool) -> int:
    """Return how many values make a recipe sure."""
    if recipe.startswith(("uniform", "torch")):
        return _UNIFORM_NEEDS
    return _CONSTANT_BIAS_NEEDS if has_constant_bias and recipe != UNKNOWN else _NORMAL_NEEDS


def _is_matrix(param: Param) -> bool:
    """Return whether a tensor has rows and columns, and not one value for each place of a row."""
    return sum(size > 1 for size in param.shape) > 1 and param.role not in RUNNING
