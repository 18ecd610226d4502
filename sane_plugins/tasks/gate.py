"""The gate: do the generated weights help, told from the scores of a short race.

A logistic regression on two margins between the best generated candidate and the best default, in
standard errors of a difference of two accuracies. Fitted by `benchmarks/gate.py` on runs of other tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import exp, sqrt
from typing import Any

from sane_plugins.tasks.candidates import Row
from sane_plugins.tasks.halving import family

_MOST = 10.0


@dataclass(frozen=True)
class Outlook:
    """How likely generated weights train better than the best default, and whether that is more than even."""

    probability: float

    @property
    def helps(self) -> bool:
        """Tell whether the generated weights are expected to help."""
        return self.probability >= 0.5


def margins(rows: Sequence[Row], images: int) -> tuple[float, float] | None:
    """Return the margins before training and at the last epoch that both were trained to.

    `rows` come best first, scored on so many images. None without a generated candidate or a default.
    """
    ours = next((r for r in rows if family(r.kind) != "default"), None)
    plain = next((r for r in rows if family(r.kind) == "default"), None)
    if ours is None or plain is None:
        return None
    both = min(len(ours.curve), len(plain.curve))
    pairs = [(ours.before, plain.before)]
    pairs.append((ours.curve[both - 1][1], plain.curve[both - 1][1]) if both else pairs[0])
    before, after = (_margin(*pair, images) for pair in pairs)
    return before, after


def outlook(rows: Sequence[Row], images: int) -> Outlook | None:
    """Return what the margins of a race tell; None where there is nothing to compare."""
    found = margins(rows, images)
    if found is None:
        return None
    told = _coefficients()
    score = told["bias"] + sum(w * x for w, x in zip(told["weights"], found, strict=True))
    return Outlook(1 / (1 + exp(-score)))


def _margin(ours: float, plain: float, images: int) -> float:
    """Return the difference of two accuracies in its standard errors, at most 10."""
    variance = (ours * (1 - ours) + plain * (1 - plain)) / images + 1 / images**2
    return max(-_MOST, min(_MOST, (ours - plain) / sqrt(variance)))


@lru_cache(maxsize=1)
def _coefficients() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (files("sane_plugins") / "data" / "gate.json").read_text()
    )
    return found
