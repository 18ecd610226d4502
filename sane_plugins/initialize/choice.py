"""The choice among trained candidates: who leads clearly, and who is about equal.

The method: docs/explanation/sane.md, section 6.7.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import sqrt

import torch

from sane_plugins.grafting import lead
from sane_plugins.initialize.candidates import Candidate
from sane_plugins.initialize.kinds import Family
from sane_plugins.initialize.ranking import CLEAR_LEAD


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates best first: the longer trained, then the more accurate by then, then by losses.

    A tie goes to the plainer kind.
    """
    return sorted(candidates, key=_rank_key)


def choose(
    candidates: Sequence[Candidate], chance: float = 0.0, expected: Collection[Family] = ()
) -> list[Candidate]:
    """Return the candidates best first, after the one that is chosen, and say who is about equal to that.

    Of those trained as long as the best, and within two standard errors of it, those stay that begin about
    as well as the best start among them, and are clearly better than `chance` if any is; and no default,
    where one stays of a family that is `expected` to beat the defaults. The plainest of these is chosen, and
    of equally plain ones that which was best where the training ended. Where none was trained the losses
    before training decide alike.
    """
    best_first = ranked(candidates)
    best = best_first[0]
    level = [c for c in best_first if _is_level(c, best)]
    equal = _without_late_starters([c for c in level if is_about_equal(c, best)])
    equal = [c for c in equal if _is_better_than(chance, c)] or equal
    if any(c.spec.kind.family in expected for c in equal):
        equal = [c for c in equal if c.spec.kind.family is not Family.DEFAULT]
    plainest = min(c.spec.kind.plainness for c in equal)
    plain = [c for c in equal if c.spec.kind.plainness == plainest]
    chosen = max(plain, key=lambda c: c.score.last or 0.0) if best.score.curve else plain[0]
    return with_chosen(best_first, chosen)


def with_chosen(candidates: Sequence[Candidate], chosen: Candidate) -> list[Candidate]:
    """Return the candidates in their order, after the chosen one, and say who is about equal to that."""
    rest = [c for c in candidates if c is not chosen]
    return [_marked(chosen, chosen), *(_marked(c, chosen) for c in rest)]


def is_about_equal(one: Candidate, other: Candidate) -> bool:
    """Return whether two, trained equally long, differ by no more than two standard errors."""
    if one is other:
        return True
    if one.answers is not None and other.answers is not None:
        error = difference_error(one.answers, other.answers)
        return abs(_accuracy(one) - _accuracy(other)) <= CLEAR_LEAD * error
    if one.losses is not None and other.losses is not None:
        return abs(lead(one.losses, other.losses)) <= CLEAR_LEAD
    return False


def difference_error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the standard error of the difference of two accuracies, from answers (N,) to the same images.

    After McNemar (1947): only images that one has right and the other wrong tell them apart. One more is
    counted, so that few images prove nothing.
    """
    return sqrt(int((one != other).sum()) + 1) / len(one)


def is_clearly_less(one: float, other: float, images: int) -> bool:
    """Return whether an accuracy is below another by more than two standard errors, each of so many images.

    The error is that of two unrelated samples: where both are of the same images it is no smaller.
    """
    share = (one + other) / 2
    error = sqrt(2 * share * (1 - share) / images + 1 / images**2)
    return other - one > CLEAR_LEAD * error


def _without_late_starters(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those whose accuracy before training is not clearly below the best one's."""
    best = max(c.score.before or 0.0 for c in candidates)
    return [
        c
        for c in candidates
        if c.answers is None or not is_clearly_less(c.score.before or 0.0, best, len(c.answers))
    ]


def _is_better_than(chance: float, candidate: Candidate) -> bool:
    """Return whether an accuracy is above that of a constant answer by more than two standard errors."""
    if candidate.answers is None:
        return False
    images, share = len(candidate.answers), _accuracy(candidate)
    error = sqrt(share * (1 - share) / images + 1 / images**2)
    return share - chance > CLEAR_LEAD * error


def _is_level(one: Candidate, other: Candidate) -> bool:
    return len(one.score.curve) == len(other.score.curve)


def _accuracy(candidate: Candidate) -> float:
    assert candidate.answers is not None  # asked where there are answers
    return float(candidate.answers.double().mean())


def _marked(candidate: Candidate, chosen: Candidate) -> Candidate:
    """Return a candidate whose score says how it compares with the chosen one."""
    error, equal = None, False
    is_other = candidate is not chosen
    if is_other and _is_level(candidate, chosen):
        if candidate.answers is not None and chosen.answers is not None:
            error = difference_error(candidate.answers, chosen.answers)
        equal = is_about_equal(candidate, chosen)
    score = replace(candidate.score, chosen=not is_other, error=error, about_equal=equal)
    return replace(candidate, score=score)


def _rank_key(candidate: Candidate) -> tuple[float, float, float, int]:
    score = candidate.score
    loss = float("inf") if score.loo_loss is None else score.loo_loss
    trained = -score.best if score.curve and score.best is not None else 0.0
    tie = 0.0 if score.curve else loss
    return -len(score.curve), trained, tie, score.kind.plainness
