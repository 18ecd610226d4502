"""What became of a tensor: how two tensors of one shape, whose channels stand in one order, differ.

The method: docs/explanation/sane.md, section 21.2.

Legend: n output channels, m input channels, p places of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Literal

import torch

from sane_plugins.comparison.change_rank import ChangeRank, change_rank
from sane_plugins.comparison.pair_sums import PairSums, paired_blocks
from sane_plugins.comparison.precision import Precision, precision_of
from sane_plugins.comparison.value_grid import Grid, find_grid

Change = Literal["equal", "rounded", "quantized", "pruned", "low_rank", "changed", "replaced"]
Side = Literal["", "a", "b"]
Scaling = Literal["", "tensor", "outputs", "inputs"]

_LEAST_PRUNED, _LEAST_ZEROS = 0.01, 4  # new zeros: their share, and their number
# A distance up to which tensors belong together whatever their correlation: constant ones have none.
_NEAR_MATRIX, _NEAR_VECTOR = 0.1, 0.25
_FACTOR_GAIN = 16  # by which the energy of the difference must fall where a factor is taken out
_VALUES_PER_FACTOR = 4
_FLOAT_STEPS = 16  # of float32 between two ways to compute the same
_MOST_STEPS = 1.0  # root mean square error of quantised values; rounding alone has 0.29
_ZERO_STEPS = 0.75  # below which a grid's rounding makes zeros
_ZEROS_TO_LEVEL = 4.0  # times as many values at zero as one step beside it
_LEAST_VALUES, _LOOKED_AT = 4, 4096  # different values of a rounded tensor, of its first
_LEAST_RANKED = 16  # shorter side of a matrix whose change may be called low in rank
_ENERGY_FLOOR = 1e-13  # of sums in double precision


@dataclass(frozen=True, kw_only=True)
class Relation:
    """How tensor b differs from tensor a.

    `change` says what happened, `derived` to which of the two where that can be seen. `scaling` says what
    has a factor of its own, which was taken out first; `is_exact` that values are the same bit by bit.
    `distance` is |b - a| / |a|, `cosine` that of all values, `correlation` the same without means. `pruned`
    is the share of values that became zero, `kept_distance` the distance of the others. `bits` and `unit`
    tell the grid of quantised values, `error_steps` the root mean square error in steps. `rank` is that of
    the change. `nonfinite` counts values that are not finite in one of both: figures are of the others.
    """

    change: Change
    derived: Side = ""
    scaling: Scaling = ""
    is_exact: bool = False
    distance: float | None = 0.0
    cosine: float | None = 1.0
    correlation: float | None = 1.0
    precision: str = ""
    pruned: float = 0.0
    kept_distance: float = 0.0
    bits: int = 0
    unit: str = ""
    error_steps: float = 0.0
    rank: ChangeRank | None = None
    nonfinite: int = 0
    factors: torch.Tensor | None = field(default=None, repr=False, compare=False)


def relate(
    a: torch.Tensor, b: torch.Tensor, chance: float, sums: PairSums | None = None
) -> Relation:
    """Return how b differs from a; both have output channels first, in one order.

    `chance` is the correlation up to which tensors count as strangers.
    """
    sums = sums or PairSums.of(a, b)
    if sums.equal == sums.size:
        return Relation(change="equal", is_exact=True)
    if not sums.is_finite:
        return _relate_finite(a, b, chance)
    return _Analysis(a, b, sums).relation(chance)


def _relate_finite(a: torch.Tensor, b: torch.Tensor, chance: float) -> Relation:
    """Return how two tensors differ in the values that are finite in both."""
    finite = a.isfinite() & b.isfinite()
    found = relate(a.where(finite, 0), b.where(finite, 0), chance)
    change: Change = "changed" if found.change == "equal" else found.change
    return replace(found, change=change, is_exact=False, nonfinite=int((~finite).sum()))


class _Analysis:
    """Two different tensors of finite values, and the factors that bring a closest to b."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, sums: PairSums) -> None:
        self.a, self.b = (x if x.ndim > 1 else x.reshape(1, -1) for x in (a.detach(), b.detach()))
        self.is_matrix = a.ndim > 1
        self.sums = sums
        self.scaling, self.factors = _factors(sums, self.is_matrix)
        self.precisions = precision_of(a), precision_of(b)
        self._measure()

    def _measure(self) -> None:
        """Take the factors out, and sum over what is left."""
        fine = Precision("", 2 * _FLOAT_STEPS * torch.finfo(torch.float32).eps, 1e-30)
        coarser = max(self.precisions, key=lambda precision: precision.step)
        self.change = torch.empty(self.a.shape[0], self.a[:1].numel(), dtype=torch.float32)
        self.energy = self.kept_energy = self.kept_size = self.scaled_energy = self.product = 0.0
        self.is_close, self.is_rounded = True, True
        for rows, x, y in paired_blocks(self.a, self.b):
            x = self._scaled(x, rows)
            e = y - x
            kept = (x != 0) & (y != 0)
            self.change[rows] = e.reshape(len(e), -1).float()
            self.energy += float((e * e).sum())
            self.scaled_energy += float((x * x).sum())
            self.product += float((x * y).sum())
            self.kept_energy += float((e * e * kept).sum())
            self.kept_size += float((x * x * kept).sum())
            size, off = torch.maximum(x.abs(), y.abs()), e.abs()
            self.is_close &= bool((off <= fine.rounding(size)).all())
            allowed = coarser.rounding(size) * (2.0 if self.scaling else 1.001)
            self.is_rounded &= bool((off <= allowed).all())

    def _scaled(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        if self.factors is None:
            return x
        if self.scaling == "outputs":
            return x * self.factors[rows, None, None]
        return x * (self.factors[:, None] if self.scaling == "inputs" else self.factors)

    def relation(self, chance: float) -> Relation:
        """Say what happened, the most particular first."""
        if self.is_close:
            return self._told("equal")
        nearest = _NEAR_MATRIX if self.is_matrix else _NEAR_VECTOR
        if self.correlation <= chance and self.distance > nearest:
            return self._told("replaced")
        derived, share = self._pruned()
        coarse, coarser = self._grids()
        if coarse and (found := self._quantized(coarse, coarser)):
            return found
        if derived and not (
            coarse and coarser == derived and self._zero_is_a_level(coarse, derived)
        ):
            return self._told("pruned", derived=derived, pruned=share)
        a, b = self.precisions
        if self.is_rounded and a.step != b.step and max(a.step, b.step) > 1e-6:
            derived, rounded = ("a", self.a) if a.step > b.step else ("b", self.b)
            # Numbers near 1, as norms have, are near 1 itself in any type.
            if len(rounded.reshape(-1)[:_LOOKED_AT].float().unique()) >= _LEAST_VALUES:
                precision = max(a, b, key=lambda one: one.step).name
                return self._told("rounded", derived=derived, precision=precision)
        rank = self._rank()
        # What changed in few values has few directions too, and is no product of two thin matrices.
        is_whole = 2 * self.sums.equal < self.sums.size
        is_low = rank is not None and rank.is_low and rank.full >= _LEAST_RANKED and is_whole
        return self._told("low_rank" if is_low else "changed", rank=rank)

    @property
    def distance(self) -> float:
        """Return |b - a| / |a|."""
        return sqrt(self.energy / max(self.scaled_energy, 1e-300))

    @property
    def correlation(self) -> float:
        """Return the correlation; where channels have factors, the cosine without them."""
        if not self.scaling:
            return self.sums.correlation
        return self.product / sqrt(max(self.scaled_energy * self.sums.energy_b, 1e-300))

    def _grids(self) -> tuple[Grid | None, Side]:
        """Return the coarser of the two grids, and whose it is."""
        grids = [
            find_grid(x, max(precision.step, torch.finfo(torch.float32).eps))
            if precision.step < 1e-2
            else None
            for x, precision in zip((self.a, self.b), self.precisions, strict=True)
        ]
        if not any(grids) or not self.is_matrix:
            return None, ""
        sizes = [float(grid.steps.median()) if grid else 0.0 for grid in grids]
        if sizes[1] > 1.5 * sizes[0]:
            return grids[1], "b"
        return (grids[0], "a") if sizes[0] > 1.5 * sizes[1] else (None, "")

    def _quantized(self, grid: Grid, derived: Side) -> Relation | None:
        errors = grid.in_steps(self.change.double())
        values = (self.b if derived == "b" else self.a).reshape(-1)[grid.places].double()
        others = values + (-1 if derived == "b" else 1) * self.change.reshape(-1)[grid.places]
        is_pruned = (values == 0) & (others.abs() > _ZERO_STEPS * grid.steps[:, None])
        share = float(is_pruned.sum()) / max(int((others != 0).sum()), 1)
        rms = float(errors[~is_pruned].square().mean().sqrt()) if bool((~is_pruned).any()) else 0.0
        if rms > _MOST_STEPS:
            return None
        return self._told(
            "pruned" if share >= _LEAST_PRUNED else "quantized",
            derived=derived,
            pruned=share if share >= _LEAST_PRUNED else 0.0,
            bits=grid.bits,
            unit=grid.unit,
            error_steps=rms,
        )

    def _zero_is_a_level(self, grid: Grid, side: Side) -> bool:
        """Return whether zeros on a grid are no more than its rounding makes, by the levels beside zero."""
        values = (self.b if side == "b" else self.a).reshape(-1)[grid.places].double()
        levels = (values / grid.steps[:, None]).round().abs()
        return int((levels == 0).sum()) <= _ZEROS_TO_LEVEL * int((levels == 1).sum()) / 2

    def _pruned(self) -> tuple[Side, float]:
        """Return which of the two has zeros that the other lacks, and their share."""
        sums = self.sums
        candidates: tuple[tuple[Side, int, int], ...] = (
            ("b", sums.zeros_b, sums.nonzero_a),
            ("a", sums.zeros_a, sums.nonzero_b),
        )
        side, zeros, others = max(candidates, key=lambda found: found[1] / max(found[2], 1))
        share = zeros / max(others, 1)
        is_pruned = zeros >= _LEAST_ZEROS and share >= _LEAST_PRUNED
        return (side, share) if is_pruned else ("", 0.0)

    def _rank(self) -> ChangeRank | None:
        if not self.is_matrix or min(self.change.shape) < 2:
            return None
        step = sum(precision.step**2 for precision in self.precisions)
        return change_rank(self.change, step / 12 * self.sums.energy_b)

    def _told(self, change: Change, **found: object) -> Relation:
        product = self.product / sqrt(max(self.scaled_energy * self.sums.energy_b, 1e-300))
        return Relation(
            change=change,
            scaling=self.scaling if change != "replaced" else "",
            factors=self.factors,
            distance=self.distance,
            cosine=max(-1.0, min(1.0, product)),
            correlation=self.correlation,
            kept_distance=sqrt(self.kept_energy / max(self.kept_size, 1e-300)),
            **found,  # type: ignore[arg-type]
        )


def _factors(sums: PairSums, is_matrix: bool) -> tuple[Scaling, torch.Tensor | None]:
    """Return what needs factors for a to come much closer to b, and these; nothing where none helps."""
    best, energy = "", float((sums.rows[0] + sums.rows[1] - 2 * sums.rows[2]).sum())
    floor = _ENERGY_FLOOR * float(sums.rows[1].sum())
    factors: torch.Tensor | None = None
    total = sums.rows.sum(1, keepdim=True)
    choices: list[tuple[Scaling, torch.Tensor]] = [("tensor", total)]
    if is_matrix:
        choices += [("outputs", sums.rows), ("inputs", sums.columns)]
    for scaling, (squares_a, squares_b, products) in choices:
        if sums.size < _VALUES_PER_FACTOR * len(squares_a):
            continue
        found = products / squares_a.where(squares_a > 0, 1.0)
        left = max(float((squares_b - found * products).sum()), floor)
        is_alike = left <= float(squares_b.sum()) / 4
        if is_alike and _FACTOR_GAIN * left < energy:
            best, energy, factors = scaling, left, found
    return best, factors  # type: ignore[return-value]
