"""Who belongs to whom: families, duplicates, and the network that each was probably tuned from.

The method: docs/explanation/sane.md, section 20.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sane_plugins.fingerprints import (
    FamilyTree,
    ManyNetworks,
    Member,
    PackedFingerprints,
    families,
)
from sane_plugins.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class Relatives:
    """Families of networks, largest first, and groups of names that hold the same weights."""

    families: tuple[FamilyTree, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()

    @property
    def children(self) -> tuple[Member, ...]:
        """Return the networks that were probably tuned from another; duplicates of it are none."""
        return tuple(
            member
            for family in self.families
            for member in family.members
            if member.relationship is not None and not member.relationship.is_same
        )

    def same_as(self, name: str) -> tuple[str, ...]:
        """Return the other networks that hold the same weights."""
        group = next((x for x in self.duplicates if name in x), ())
        return tuple(x for x in group if x != name)


def find_relatives(packed: Sequence[PackedFingerprints], report: Report = silent) -> Relatives:
    """Find families and duplicates; pairs of networks are compared once for both."""
    if not packed:
        return Relatives()
    many = ManyNetworks(packed)
    pairs = many.related_pairs(report)
    return Relatives(
        families=tuple(families(many, pairs=pairs)),
        duplicates=tuple(
            tuple(many.names[i] for i in group) for group in many.duplicates(pairs=pairs)
        ),
    )
