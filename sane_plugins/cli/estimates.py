"""What commands tell of an estimate: of a kind of networks that no head was fitted on, its rank alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sane_plugins import properties

UNLIKE = "?"
_GUESSES: Mapping[str, Mapping[str, Any]] = {
    "Estimate": {"value": None, "interval": None},
    "CategoryEstimate": {"value": None, "set": None, "probabilities": None},
}


def is_withheld(estimate: properties.AnyEstimate, force: bool) -> bool:
    """Return whether a value is not told: it is a guess, and guesses were not asked for."""
    return not (force or estimate.in_distribution)


def to_record(
    estimate: properties.AnyEstimate, force: bool, rank: properties.Rank | None
) -> dict[str, Any]:
    """Return an estimate for JSON; what is withheld is None."""
    record = dict(vars(estimate))
    if is_withheld(estimate, force):
        record |= _GUESSES[type(estimate).__name__]
    if isinstance(estimate, properties.Estimate):
        record |= {"rank": rank and rank.place, "ranked": rank and rank.of}
    return record


def to_cell(
    estimate: properties.AnyEstimate | None, force: bool, rank: properties.Rank | None
) -> str:
    """Return value and interval, or class and set; a mark and a rank for networks of an unknown kind."""
    if estimate is None:
        return ""
    if is_withheld(estimate, force):
        return f"{UNLIKE} rank {rank.place} of {rank.of}" if rank else UNLIKE
    if isinstance(estimate, properties.CategoryEstimate):
        shown = f"{estimate.value} {estimate.probabilities[estimate.value]:.0%}"
        if len(estimate.set) > 1:
            shown += f" ({', '.join(estimate.set)})"
    else:
        low, high = estimate.interval
        shown = f"{estimate.value:.3g} ({low:.3g} to {high:.3g})"
    return shown if estimate.in_distribution else f"{shown} {UNLIKE}"
