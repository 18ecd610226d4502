"""Is a tensor still what an initialisation drew?

The method: docs/explanation/sane.md, section 9.6.
Drawn values are independent and of one distribution. So their moments, bounds and distribution (Kolmogorov
and Smirnov) are the law's within sampling error, and rows and columns differ by no more than chance.
Training breaks these.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from math import sqrt

import numpy as np
from scipy import special

from sane_plugins.health.initial_laws import FAMILIES, NORMAL, UNIFORM, Law, torch_bias
from sane_plugins.health.tensor_profile import Array, TensorProfile

UNKNOWN = "independent values of one distribution"
_LEAST_FOR_UNKNOWN = 1 << 10
_MOST_Z = 4.5  # standard errors
_MOST_KS = 2.3  # largest difference times the square root of the sample size: one in 20,000
_LEAST_CHANCE = 1e-6  # of rows or columns that differ so much, or so little
_ROUNDING = 1e-3  # of a bound, of half precision
_MOST_GAP = (
    12.0  # mean distances between neighbours, from the largest value to a uniform law's bound
)
_TINY_BIAS = 1e-3  # of the weights' root mean square: some are drawn that small


def fitting_recipes(profile: TensorProfile, laws: Iterable[Law]) -> frozenset[str]:
    """Return the recipes of the laws that a matrix may have been drawn from, the unknown law included."""
    drawn = _Drawn(profile)
    if not drawn.is_even:
        return frozenset()
    found = {law.recipe for law in laws if drawn.fits(law)}
    if profile.size >= _LEAST_FOR_UNKNOWN:
        own = (Law(UNKNOWN, family, profile.moments_without_outliers()[1]) for family in FAMILIES)
        found |= {law.recipe for law in own if drawn.fits(law, is_measured=True)}
    return frozenset(found)


def is_initial_bias(bias: TensorProfile, weight: TensorProfile, hidden: Iterable[float]) -> bool:
    """Return whether a bias is constant, uniform as torch draws it, or hardly different from 0.

    hidden: what may be the number of inputs in torch's law of it.
    """
    if bias.is_constant or bias.largest <= _TINY_BIAS * sqrt(weight.power):
        return True
    drawn = _Drawn(bias)
    return any(drawn.fits(torch_bias(1 / (3 * count))) for count in hidden)


class _Drawn:
    """Compares one tensor with laws."""

    def __init__(self, profile: TensorProfile) -> None:
        self._profile = profile

    @cached_property
    def _moments(self) -> tuple[float, float, float]:
        return self._profile.moments_without_outliers()

    @cached_property
    def is_even(self) -> bool:
        """Return whether the rows, and the columns, differ as those of independent values do."""
        x = self._profile
        rows, columns = x.shape
        spread = x.fourth - x.power**2
        if x.power == 0 or spread <= 0:
            return False
        return (
            _is_chance(
                ((x.row_powers - columns * x.power) ** 2).sum() / (columns * spread), *x.shape
            )
            and _is_chance(
                ((x.column_powers - rows * x.power) ** 2).sum() / (rows * spread), columns, rows
            )
            and _is_chance((x.row_sums**2).sum() / (columns * x.power), *x.shape)
            and _is_chance((x.column_sums**2).sum() / (rows * x.power), columns, rows)
        )

    def fits(self, law: Law, is_measured: bool = False) -> bool:
        """Return whether moments, bound and distribution are the law's; `is_measured`: it is fitted."""
        x, family = self._profile, law.family
        mean, variance, kurtosis = self._moments
        if abs(variance / law.variance - 1) > _MOST_Z * sqrt((family.kurtosis - 1) / x.size):
            return False
        if abs(mean) > _MOST_Z * sqrt(law.variance / x.size):
            return False
        bound = family.bound * sqrt(law.variance)
        if not is_measured and x.largest > bound * (1 + _ROUNDING):
            return False
        if family is UNIFORM and x.largest < bound * (1 - _MOST_GAP / x.size - _ROUNDING):
            return False
        if family is NORMAL and abs(kurtosis - 3) > _MOST_Z * sqrt(24 / x.size) + 24 / x.size:
            return False
        return _distance(x.sample / sqrt(law.variance), law) < _MOST_KS


def _is_chance(deviations: float, count: int, summed: int) -> bool:
    """Return whether `count` sums have squared deviations, in units of their variance, as chance gives.

    Each is a sum of `summed` values; of few, its square varies more, by the kurtosis of a gamma variable.
    """
    if count < 2:
        return True
    freedom = 2 * count**2 / (2 * count + 12 * count / summed)
    scaled = deviations * freedom / count
    chance = min(special.chdtrc(freedom, scaled), special.chdtr(freedom, scaled))
    return bool(chance > _LEAST_CHANCE)


def _distance(sample: Array, law: Law) -> float:
    """Return the statistic of Kolmogorov and Smirnov times the square root of the sample's size."""
    share, count = law.family.distribution(sample), len(sample)
    steps = np.arange(count + 1) / count
    return sqrt(count) * float(max((steps[1:] - share).max(), (share - steps[:-1]).max()))
