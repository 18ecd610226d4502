"""Predicted property of one network: a number with an interval, or a class with a prediction set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A predicted property with the interval that holds the true value with probability `coverage`.

    The coverage holds for networks similar to the training networks; `in_distribution` says whether this one
    is, and `typicality` is the fraction of them that were less typical: below 0.01 means unlike them.
    `features` names the feature set that was used. `score` orders networks of one `structure` (matrices,
    vectors, log2 of parameters) by the property, also those of a kind that no head was fitted on, for which
    `value` is a guess. `caveat` says why the estimate is no measurement where the network's file tells that,
    else it is empty.
    """

    property: str
    value: float
    unit: str
    interval: tuple[float, float]
    coverage: float
    in_distribution: bool
    features: str
    typicality: float | None = None
    score: float | None = None
    structure: tuple[float, ...] = ()
    caveat: str = ""


@dataclass(frozen=True, kw_only=True)
class CategoryEstimate:
    """A predicted class with the set that holds the true class with probability `coverage`.

    `set` starts with the most probable class; `probabilities` covers all. The rest is as in `Estimate`.
    """

    property: str
    value: str
    probabilities: Mapping[str, float] = field(hash=False)
    set: tuple[str, ...]
    coverage: float
    in_distribution: bool
    features: str
    typicality: float | None = None
    caveat: str = ""


AnyEstimate = Estimate | CategoryEstimate
