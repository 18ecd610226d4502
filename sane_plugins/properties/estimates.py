"""Predicted property of one network: a number with an interval, or a class with a set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A predicted property with the interval that holds the true value with probability `coverage`.

    The promise holds for networks like those the head was fitted on; `in_distribution` says whether this one
    is, and `typicality` how many of them were less typical, a share: below 0.01 means unlike them.
    `features` names the encoders whose features were read.
    """

    property: str
    value: float
    unit: str
    interval: tuple[float, float]
    coverage: float
    in_distribution: bool
    features: str
    typicality: float | None = None


@dataclass(frozen=True, kw_only=True)
class CategoryEstimate:
    """A predicted class with the set that holds the true one with probability `coverage`.

    `set` has the most probable class first; `probabilities` has all. The rest is as in `Estimate`.
    """

    property: str
    value: str
    probabilities: Mapping[str, float] = field(hash=False)
    set: tuple[str, ...]
    coverage: float
    in_distribution: bool
    features: str
    typicality: float | None = None


AnyEstimate = Estimate | CategoryEstimate
