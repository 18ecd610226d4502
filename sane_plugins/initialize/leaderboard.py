"""The best candidates of each kind before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sane_plugins.initialize.candidates import Candidate
from sane_plugins.initialize.kinds import CandidateScore, Kind
from sane_plugins.initialize.plan import Plan


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """The best candidates of each kind before training, and the scores of the dropped ones.

    `plan` says how many of a kind are kept. `variants` are the best ones at another scale, or in part.
    """

    plan: Plan
    kept: tuple[Candidate, ...] = ()
    dropped: tuple[CandidateScore, ...] = ()

    def best(self, *kinds: Kind) -> tuple[Candidate, ...]:
        """Return the kept candidates of some kinds, best first."""
        return tuple(sorted((c for c in self.kept if c.spec.kind in kinds), key=by_loss))

    def with_candidate(self, new: Candidate) -> Leaderboard:
        """Return the board after a candidate, which is kept if it is among the best of its kind."""
        return replace(self, kept=(*self.kept, new)).limited(new.spec.kind)

    def with_variant(self, new: Candidate) -> Leaderboard:
        """Return the board with one more candidate, which is kept whatever its rank."""
        return replace(self, kept=(*self.kept, new))

    def limited(self, kind: Kind, most: int | None = None) -> Leaderboard:
        """Return the board with at most so many candidates of a kind, or as many as the plan says."""
        worse = self.best(kind)[self.plan.limit(kind) if most is None else most :]
        return self.without(worse)

    def without(self, some: Sequence[Candidate]) -> Leaderboard:
        """Return the board without some candidates, whose scores stay."""
        kept = tuple(c for c in self.kept if not any(c is x for x in some))
        return replace(self, kept=kept, dropped=(*self.dropped, *(c.score for c in some)))


def by_loss(candidate: Candidate) -> float:
    """Return the leave-one-out loss, to sort by."""
    loss = candidate.score.loo_loss
    return float("inf") if loss is None or loss != loss else loss
