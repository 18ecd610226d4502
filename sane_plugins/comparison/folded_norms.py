"""Norms of one network that the other holds in the weights before them.

The method: docs/explanation/sane.md, section 21.5.

Legend: C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sane_plugins.comparison.difference import TensorDifference
from sane_plugins.comparison.relation import relate
from sane_plugins.weights import NORM_ROLES, Layer, Param, WeightGraph

_CLOSE = 0.02  # median relative error of factors: half precision and 8 bits leave less
_LARGEST_EPSILON = 0.1
_CHANCE = 0.5  # correlation of a bias with what it should be
_SAME_BIAS = 1e-4  # relative distance; differences of large numbers lose digits
_ROLES = frozenset(NORM_ROLES.values())


@dataclass(frozen=True, kw_only=True)
class FoldedNorm:
    """A norm, the layer before it in its own network, and the other network's layer for both.

    `weight` is the difference of the weights that take the norm in, `bias` compares the bias that the other
    network has with the one that the norm makes.
    """

    norm: Layer
    before: Layer
    into: Layer
    weight: TensorDifference
    bias: TensorDifference | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Norm:
    """A norm's vectors (C,) in double precision; those that it lacks are 1 or 0."""

    layer: Layer
    scale: torch.Tensor
    shift: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor | None

    def factors(self, wanted: torch.Tensor) -> torch.Tensor:
        """Return what the norm multiplies channels by, with the epsilon that comes closest to `wanted`."""
        if self.variance is None:
            return self.scale
        used = (wanted.abs() > 1e-6 * wanted.abs().amax()) & (self.scale != 0)
        found = (self.scale / wanted.where(used, 1.0)).square() - self.variance
        epsilon = float(found[used].median()) if bool(used.any()) else 0.0
        return self.scale / (self.variance + min(max(epsilon, 1e-12), _LARGEST_EPSILON)).sqrt()

    def error(self, wanted: torch.Tensor) -> float:
        """Return the median error of the norm's factors, relative to the median of those wanted."""
        size = float(wanted.abs().median())
        return float((self.factors(wanted) - wanted).abs().median()) / size if size else 1.0


def find_folded_norms(
    holder: WeightGraph,
    other: WeightGraph,
    differences: Sequence[TensorDifference],
    is_swapped: bool,
) -> Iterator[FoldedNorm]:
    """Yield norms of `holder` that explain the factors between its weights and those of the other network.

    `is_swapped`: the holder is the second network of the differences.
    """
    owners, others = ({p.key: x for x in g.layers for p in x.params} for g in (holder, other))
    norms = [*_norms(holder, _without_partner(holder, differences, is_swapped))]
    for difference in differences:
        factors, relation = difference.relation.factors, difference.relation
        if factors is None or relation.scaling != "outputs":
            continue
        mine, theirs = difference.a, difference.b
        outputs = difference.outputs or (torch.arange(len(factors)),) * 2
        if is_swapped:
            mine, theirs, outputs, factors = theirs, mine, outputs[::-1], 1 / factors
        if len(outputs[0]) != mine.shape[mine.axis] or not bool(factors.isfinite().all()):
            continue
        wanted = torch.empty_like(factors)
        wanted[outputs[0]] = factors
        fitting = [x for x in norms if len(x.scale) == len(wanted)]
        best = min(fitting, key=lambda norm: norm.error(wanted), default=None)
        if best is not None and best.error(wanted) < _CLOSE:
            norms.remove(best)
            before, into = owners[mine.key], others[theirs.key]
            made = _made_bias(holder, before, best, best.factors(wanted))
            bias = _compared(other, into, best, before, made, outputs, is_swapped)
            yield FoldedNorm(
                norm=best.layer, before=before, into=into, weight=difference, bias=bias
            )


def _without_partner(
    holder: WeightGraph, differences: Sequence[TensorDifference], is_swapped: bool
) -> Iterator[Layer]:
    """Yield the layers whose scale or variance has no partner that is one too."""
    paired = {}
    for x in differences:
        mine, theirs = (x.b, x.a) if is_swapped else (x.a, x.b)
        if theirs.role in _ROLES - {"shift"}:
            paired[mine.key] = theirs
    for layer in holder.layers:
        if not any(p.key in paired for p in layer.params if p.role in _ROLES - {"shift"}):
            yield layer


def _norms(graph: WeightGraph, layers: Iterable[Layer]) -> Iterator[_Norm]:
    """Yield the norms among some layers: vectors of one length, with a scale or a variance."""
    for layer in layers:
        by_role: dict[str, Param] = {p.role: p for p in layer.params if p.size > 1}
        shapes = {p.shape for p in by_role.values()}
        is_norm = bool({"scale", "running_var"} & by_role.keys()) and by_role.keys() <= _ROLES
        if is_norm and len(shapes) == 1 and len(next(iter(shapes))) == 1:
            yield _norm(graph, layer, by_role)


def _norm(graph: WeightGraph, layer: Layer, by_role: Mapping[str, Param]) -> _Norm:
    size = next(iter(by_role.values())).size

    def read(role: str, default: float) -> torch.Tensor:
        if role not in by_role:
            return torch.full((size,), default, dtype=torch.float64)
        return graph.tensors[by_role[role].key].detach().to("cpu", torch.float64)

    variance = read("running_var", 1.0) if "running_var" in by_role else None
    return _Norm(
        layer=layer,
        scale=read("scale", 1.0),
        shift=read("shift", 0.0),
        mean=read("running_mean", 0.0),
        variance=variance,
    )


def _bias(layer: Layer, size: int) -> Param | None:
    """Return a layer's only vector of this length."""
    found = [p for p in layer.params if p.shape == (size,)]
    return found[0] if len(found) == 1 else None


def _made_bias(
    holder: WeightGraph, before: Layer, norm: _Norm, factors: torch.Tensor
) -> torch.Tensor:
    """Return the bias (C,) of a layer and the norm behind it taken as one."""
    bias = _bias(before, len(norm.scale))
    own = holder.tensors[bias.key].detach().to("cpu", torch.float64) if bias else 0.0
    return norm.shift + (own - norm.mean) * factors


def _compared(
    other: WeightGraph,
    into: Layer,
    norm: _Norm,
    before: Layer,
    made: torch.Tensor,
    outputs: tuple[torch.Tensor, torch.Tensor],
    is_swapped: bool,
) -> TensorDifference | None:
    """Compare the bias that the other network has with the one that a norm makes."""
    theirs = _bias(into, len(made))
    mine = _bias(before, len(made))
    shift = next((p for p in norm.layer.params if p.role == "shift"), norm.layer.params[0])
    if theirs is None:
        return None
    actual = other.tensors[theirs.key].detach().to("cpu", torch.float64)
    expected, found = made[outputs[0]].float(), actual[outputs[1]].float()
    one, two = mine or shift, theirs
    if is_swapped:
        expected, found, one, two = found, expected, two, one
    relation = replace(relate(expected, found, _CHANCE), scaling="")
    if relation.distance is not None and relation.distance < _SAME_BIAS:
        relation = replace(relation, change="equal")
    return TensorDifference(a=one, b=two, relation=relation)
