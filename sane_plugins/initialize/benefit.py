"""The gate: do the generated weights help, told from the scores of a short race.

A logistic regression on who won the race and on the margin of the best generated candidate over the best
default, both trained in three folds, twice (McNemar's test: paired, on all images). Where there is no
time for that: on two margins of the race, in standard errors of a difference of two accuracies. Fitted
by `tools/release/fit_gate.py`, chosen among others by `benchmarks/gate.py`, on runs of other tasks.
The method: docs/explanation/sane.md, section 13.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from math import ceil, exp, sqrt
from typing import Any

import torch

from sane_plugins.initialize.budget import Budget, BudgetSpentError
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.options import Candidate, CandidateScore
from sane_plugins.initialize.successive_halving import family, trial
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import Task

_MOST = 10.0
ORDERS = 2
_FOLDS, _EPOCHS = 3, 2
_CLOSE = 0.1


@dataclass(frozen=True)
class BenefitForecast:
    """How likely generated weights train better than the best default, and whether that is more than even."""

    probability: float

    @property
    def helps(self) -> bool:
        """Tell whether the generated weights are expected to help."""
        return self.probability >= 0.5

    @property
    def is_close(self) -> bool:
        """Tell whether it is too close to call."""
        return abs(self.probability - 0.5) < _CLOSE


def margins(rows: Sequence[CandidateScore], images: int) -> tuple[float, float] | None:
    """Return the margins before training and at the last epoch that both were trained to.

    `rows` come best first, scored on so many images. None without a generated candidate or a default.
    """
    places = _firsts(rows)
    if places is None:
        return None
    ours, plain = (rows[place] for place in places)
    both = min(len(ours.curve), len(plain.curve))
    pairs = [(ours.before, plain.before)]
    pairs.append((ours.curve[both - 1][1], plain.curve[both - 1][1]) if both else pairs[0])
    before, after = (_margin(*pair, images) for pair in pairs)
    return before, after


def paired(bench: CandidateBuilder, raced: Sequence[Candidate], clock: Budget) -> float | None:
    """Return McNemar's margin of the best generated candidate over the best default, -10 to 10.

    None where one of them is missing, or the time is over.
    """
    rivals = best_of_both(raced)
    if rivals is None:
        return None
    try:
        with clock.until_over():
            counts = [counted(bench, *rivals, order, clock) for order in range(ORDERS)]
    except BudgetSpentError:
        return None
    return mcnemar(counts)


def best_of_both(raced: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
    """Return the best generated candidate and the best default, if there are both."""
    places = _firsts([c.row for c in raced])
    return (raced[places[0]], raced[places[1]]) if places else None


def counted(
    bench: CandidateBuilder, ours: Candidate, plain: Candidate, order: int, clock: Budget
) -> tuple[int, int]:
    """Return how many answers the one has right and the other wrong, and the reverse.

    Both are trained on two thirds of the images at hand and asked about the last after one and two epochs,
    in turn.
    """
    better = worse = 0
    for fold in _folds(bench, order):
        a, b = (_answers(bench, c, fold, order, clock) for c in (ours, plain))
        better += int((a & ~b).sum())
        worse += int((b & ~a).sum())
    return better, worse


def mcnemar(counts: Sequence[tuple[int, int]]) -> float:
    """Return the difference of all counts in its standard errors, -10 to 10."""
    better, worse = sum(b for b, _ in counts), sum(w for _, w in counts)
    return max(-_MOST, min(_MOST, (better - worse) / sqrt(better + worse + 1)))


def won(rows: Sequence[CandidateScore]) -> float:
    """Return 1 where a generated candidate won the race, -1 where a default did; `rows` come best first."""
    return -1.0 if family(rows[0].kind) == "default" else 1.0


def outlook(
    rows: Sequence[CandidateScore], images: int, pairs: float | None = None
) -> BenefitForecast | None:
    """Return what the margins of a race tell; None where there is nothing to compare."""
    raced = margins(rows, images)
    if raced is None:
        return None
    told = _coefficients()["race" if pairs is None else "folds"]
    found = raced if pairs is None else (won(rows), pairs)
    score = told["bias"] + sum(w * x for w, x in zip(told["weights"], found, strict=True))
    return BenefitForecast(1 / (1 + exp(-score)))


def _firsts(rows: Sequence[CandidateScore]) -> tuple[int, int] | None:
    """Return the places of the first generated candidate and of the first default, if there are both."""
    is_plain = [family(row.kind) == "default" for row in rows]
    return (is_plain.index(False), is_plain.index(True)) if len({*is_plain}) == 2 else None


def _folds(bench: CandidateBuilder, order: int) -> Iterator[Task]:
    task = bench.task
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    rng = random_stream(bench.options.seed, "gate", order)
    shuffled = torch.randperm(len(y), generator=rng).to(y.device)
    for i in range(_FOLDS):
        out = shuffled[i::_FOLDS]
        stay = torch.ones(len(y), dtype=torch.bool, device=y.device)
        stay[out] = False
        yield replace(task, x_train=x[stay], y_train=y[stay], x_test=x[out], y_test=y[out])


def _answers(
    bench: CandidateBuilder, candidate: Candidate, fold: Task, order: int, clock: Budget
) -> torch.Tensor:
    """Train on a fold and return which of its test images are right after each epoch, (epochs x N,) bool."""
    own = replace(bench, task=fold)
    row = replace(candidate.row, seed=candidate.row.seed + order)
    training = trial(own, replace(candidate, row=row))
    if bench.fits and candidate.row.kind != "default":
        own.fit(training.module)
    steps = ceil(len(fold.y_train) / bench.options.train.batch)
    found = []
    for epoch in range(_EPOCHS):
        training.advance((epoch + 1) * steps, clock.check)
        found.append(training.correct())
    return torch.cat(found)


def _margin(ours: float, plain: float, images: int) -> float:
    """Return the difference of two accuracies in its standard errors, at most 10."""
    variance = (ours * (1 - ours) + plain * (1 - plain)) / images + 1 / images**2
    return max(-_MOST, min(_MOST, (ours - plain) / sqrt(variance)))


@lru_cache(maxsize=1)
def _coefficients() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("sane_plugins") / "data" / "gate.json").read_text())
    return found
