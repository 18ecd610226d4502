"""Ranks among their like of networks whose kind no head was fitted on.

The method: docs/explanation/sane.md, section 9.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sane_plugins.properties.abstention import is_withheld
from sane_plugins.properties.estimates import AnyEstimate, Estimate
from sane_plugins.properties.kinds import find_kinds


@dataclass(frozen=True)
class Rank:
    """A place by one property, of so many networks of one structure: 1 is the highest, equals share one."""

    place: int
    of: int


def rank_unknown(estimates: Mapping[str, AnyEstimate | None]) -> dict[str, Rank]:
    """Return the rank of each network of an unknown kind, by name, among those of its structure.

    Estimates are of one property; those without a structure, categories, and a network that is alone in its
    structure have no rank.
    """
    unknown = {
        name: x
        for name, x in estimates.items()
        if isinstance(x, Estimate) and is_withheld(x) and x.structure
    }
    if not unknown:
        return {}
    kinds = find_kinds(np.array([x.structure for x in unknown.values()]))
    ranks: dict[str, Rank] = {}
    for kind in np.unique(kinds):
        like = [name for name, of in zip(unknown, kinds, strict=True) if of == kind]
        if len(like) == 1:
            continue
        scores = np.array([_score(unknown[name]) for name in like])
        places = 1 + (scores > scores[:, None]).sum(1)
        ranks |= {name: Rank(int(n), len(like)) for name, n in zip(like, places, strict=True)}
    return {name: ranks[name] for name in unknown if name in ranks}


def rank_all(
    predictions: Mapping[str, Mapping[str, AnyEstimate]],
) -> dict[str, dict[str, Rank]]:
    """Return the ranks of networks by property, from their estimates by property (`rank_unknown`)."""
    names = dict.fromkeys(name for estimates in predictions.values() for name in estimates)
    return {
        name: rank_unknown({network: x.get(name) for network, x in predictions.items()})
        for name in names
    }


def _score(estimate: Estimate) -> float:
    return estimate.value if estimate.score is None else estimate.score
