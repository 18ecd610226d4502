"""The best candidates of each kind before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sane_plugins.grafting import LeftOutLosses, lead
from sane_plugins.initialize.candidates import Candidate
from sane_plugins.initialize.kinds import CandidateScore, Kind
from sane_plugins.initialize.plan import Plan
from sane_plugins.initialize.ranking import CLEAR_LEAD


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
        """Return the board with at most so many candidates of a kind, or as many as the plan says.

        Of transfers that whose training starts from the best features is kept, before or beside the last.
        """
        found = self.best(kind)
        count = self.plan.limit(kind) if most is None else most
        kept = found[:count]
        if kind is Kind.TRANSFER and kept and (start := self._best_start()) not in kept:
            is_clear = _leads(kept[-1].losses, start.losses)
            kept = (*(kept if is_clear else kept[:-1]), start)
        return self.without([c for c in found if c not in kept])

    def _best_start(self) -> Candidate:
        """Return the transfer of least loss as training starts; of those about equal, the first made."""
        transfers = [c for c in self.kept if c.spec.kind is Kind.TRANSFER]
        best = min(transfers, key=_by_training_loss)
        return next(
            c for c in transfers if c is best or not _leads(best.training_fit, c.training_fit)
        )

    def without(self, some: Sequence[Candidate]) -> Leaderboard:
        """Return the board without some candidates, whose scores stay."""
        kept = tuple(c for c in self.kept if not any(c is x for x in some))
        return replace(self, kept=kept, dropped=(*self.dropped, *(c.score for c in some)))


def _leads(one: LeftOutLosses | None, other: LeftOutLosses | None) -> bool:
    """Return whether the one's losses are smaller by two standard errors."""
    return one is not None and other is not None and lead(one, other) > CLEAR_LEAD


def _by_training_loss(candidate: Candidate) -> float:
    fit = candidate.training_fit
    return float("inf") if fit is None or fit.loo_loss != fit.loo_loss else fit.loo_loss


def by_loss(candidate: Candidate) -> float:
    """Return the leave-one-out loss, to sort by."""
    loss = candidate.score.loo_loss
    return float("inf") if loss is None or loss != loss else loss
