"""Which of two networks is better, by what their weights tell, and how sure that is.

The method: docs/explanation/sane.md, section 9.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from scipy import special

from sane_plugins.errors import UsageError
from sane_plugins.properties.abstention import UNLIKE, is_withheld
from sane_plugins.properties.estimates import AnyEstimate, CategoryEstimate, Estimate

SURE = 0.8
"""Probability from which a network is called better."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The better of two networks by one property, with its probability; None where that cannot be told.

    `probability` is that of the more probable one, None where no probability can be given. `reason` says why
    it cannot be told.
    """

    property: str
    better: Literal["a", "b"] | None
    probability: float | None
    reason: str = ""


def compare_estimates(
    a: AnyEstimate, b: AnyEstimate, lower_is_better: bool = False, sure: float = SURE
) -> Comparison:
    """Compare two estimates of one property, of which more is better unless `lower_is_better`.

    Errors count as independent: where both networks err alike, the difference is known better than that, and
    the probability is rather too low (benchmarks/results/compare.md). Raises `UsageError` for a property
    that has no order.
    """
    if isinstance(a, CategoryEstimate) or isinstance(b, CategoryEstimate):
        raise UsageError(
            f"property '{a.property}'",
            "its values are names",
            "a property of numbers has a better and a worse",
            "choose another with --property",
        )
    unknown = [name for name, x in (("A", a), ("B", b)) if is_withheld(x)]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        reason = f"{' and '.join(unknown)} {verb} {UNLIKE}"
        return Comparison(property=a.property, better=None, probability=None, reason=reason)
    spread = sqrt(_deviation(a) ** 2 + _deviation(b) ** 2)
    lead = (b.value - a.value) * (-1 if lower_is_better else 1)
    b_better = (
        float(special.ndtr(lead / spread)) if spread else 0.5 + (lead > 0) / 2 - (lead < 0) / 2
    )
    probability = max(b_better, 1 - b_better)
    if probability < sure:
        leader = "B" if b_better > 0.5 else "A"
        reason = f"{leader} is better with {probability:.0%} only"
        if probability == 0.5:
            reason = "both are estimated alike"
        return Comparison(property=a.property, better=None, probability=probability, reason=reason)
    better: Literal["a", "b"] = "b" if b_better > 0.5 else "a"
    return Comparison(property=a.property, better=better, probability=probability)


def _deviation(x: Estimate) -> float:
    """Return the standard deviation of the normal law with this interval.

    A bound may be cut at the property's range, so the longer half counts.
    """
    half = max(x.interval[1] - x.value, x.value - x.interval[0])
    return half / float(special.ndtri((1 + x.coverage) / 2))
