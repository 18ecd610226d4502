"""The best network of a report: by what was measured, or else by what is predicted, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sane_plugins.properties import UNLIKE, Estimate, compare_estimates, is_withheld
from sane_plugins.zoo_report.network_row import NetworkRow
from sane_plugins.zoo_report.relatives import Relatives

_HALF = 0.5  # two estimates between which nothing tells are each better with this probability


@dataclass(frozen=True, kw_only=True)
class BestNetwork:
    """The best of the healthy networks by one property; `name` is empty where `reason` says that none is.

    `basis` says whether the value was measured or is predicted, with its `interval`. `probability` is that of
    being better than the next one, `next`, whose weights are others; None where none can be given.
    """

    property: str
    name: str = ""
    basis: Literal["measured", "predicted"] | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None
    next: str = ""
    probability: float | None = None
    reason: str = ""


def find_best(
    rows: Sequence[NetworkRow], relatives: Relatives, name: str, *, lower: bool = False
) -> BestNetwork:
    """Return the best by a property of which more is better, or less with `lower`.

    What was measured of any network counts for more than predictions. Networks with faults, and predictions
    for kinds of networks that the head does not know, do not count.
    """
    healthy = [row for row in rows if row.is_healthy]
    sign = -1 if lower else 1
    measured = {
        row.name: x for row in healthy if (x := _number(row.measured.get(name))) is not None
    }
    if measured:
        best, *others = sorted(measured, key=lambda x: -sign * measured[x])
        following = _next(others, relatives.same_as(best))
        return BestNetwork(
            property=name, name=best, basis="measured", value=measured[best], next=following
        )
    estimates = {
        row.name: found
        for row in healthy
        if isinstance(found := row.predictions.get(name), Estimate)
    }
    known = {key: x for key, x in estimates.items() if not is_withheld(x)}
    if not known:
        return BestNetwork(property=name, reason=_why_none(healthy, estimates))
    best, *others = sorted(known, key=lambda x: -sign * known[x].value)
    following = _next(others, relatives.same_as(best))
    probability = None
    if following:
        result = compare_estimates(known[following], known[best], lower, sure=_HALF)
        probability = result.probability
    return BestNetwork(
        property=name,
        name=best,
        basis="predicted",
        value=known[best].value,
        interval=known[best].interval,
        next=following,
        probability=probability,
    )


def _number(value: object) -> float | None:
    """Return a measured value that has an order."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _next(others: Sequence[str], same: Sequence[str]) -> str:
    """Return the first of others, in their order, that holds other weights."""
    return next((x for x in others if x not in same), "")


def _why_none(healthy: Sequence[NetworkRow], estimates: dict[str, Estimate]) -> str:
    if not healthy:
        return "no network is healthy"
    if estimates:
        return f"each is {UNLIKE}, so none can be called best"
    return "it was neither measured nor predicted for any network in working order"
