"""What is told of an estimate: no value for a network of a kind that no head was fitted on, but its rank.

A head abstains from what it cannot know (selective prediction, El-Yaniv and Wiener 2010); every command,
report and host asks here what it may show. With `force` the guess is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sane_plugins.properties.estimates import AnyEstimate, CategoryEstimate, Estimate

if TYPE_CHECKING:  # numpy is slow to load, and commands show their help without it
    from sane_plugins.properties.ranking import Rank

UNLIKE = "unlike every network that the head was fitted on"


def is_withheld(estimate: AnyEstimate, force: bool = False) -> bool:
    """Return whether a value is not told: it is a guess, and guesses were not asked for."""
    return not (force or estimate.in_distribution)


def estimate_record(
    estimate: AnyEstimate, *, force: bool = False, rank: Rank | None = None
) -> dict[str, Any]:
    """Return an estimate as plain data by field; what is withheld is None, and `withheld` says why.

    Of numbers `rank` and `ranked` (among how many) are there too.
    """
    why = UNLIKE if is_withheld(estimate, force) else None
    record = {**vars(estimate), "in_distribution": bool(estimate.in_distribution), "withheld": why}
    if isinstance(estimate, CategoryEstimate):
        record |= {"set": [*estimate.set], "probabilities": dict(estimate.probabilities)}
        guesses = ["value", "set", "probabilities"]
    else:
        record |= {"rank": rank and rank.place, "ranked": rank and rank.of}
        guesses = ["value", "interval"]
    return record | dict.fromkeys(guesses if why else [])


def estimate_text(estimate: AnyEstimate, *, force: bool = False, rank: Rank | None = None) -> str:
    """Return value and interval, or class and set; of what is withheld the rank, or why it is."""
    if is_withheld(estimate, force):
        return f"rank {rank.place} of {rank.of}" if rank else UNLIKE
    if isinstance(estimate, Estimate):
        low, high = estimate.interval
        return f"{estimate.value:.3g} ({low:.3g} to {high:.3g})"
    others = f" ({', '.join(estimate.set)})" if len(estimate.set) > 1 else ""
    return f"{estimate.value} {estimate.probabilities[estimate.value]:.0%}{others}"


def withheld_note(estimates: Mapping[str, AnyEstimate], force: bool = False) -> str:
    """Return a sentence on the properties of one network whose values are withheld, empty if none is."""
    names = [name for name, x in estimates.items() if is_withheld(x, force)]
    if not names:
        return ""
    return (
        f"no value of {', '.join(names)} is told: the network is {UNLIKE}; 'force' tells the guess"
    )
