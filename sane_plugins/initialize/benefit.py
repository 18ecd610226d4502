"""The forecast: whether the generated weights help, from the scores of a short race (the gate).

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
from math import exp, sqrt
from typing import Any

import torch

from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import (
    Candidate,
    CandidateScore,
    Family,
    Kind,
    fit_head,
)
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import start_training
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


def forecast_after_race(
    problem: InitializationProblem, candidates: Sequence[Candidate], budget: Budget
) -> tuple[BenefitForecast | None, Completion]:
    """Forecast from the candidates of a race, best first, which are trained in folds while there is time.

    Returns how that ended too. The forecast is None where there is nothing to compare.
    """
    rivals, paired = best_rivals(candidates), None
    with Stage(budget.end()) as stage:
        if rivals is not None:
            orders = range(ORDERS)
            paired = mcnemar_margin(
                [count_discordant(problem, *rivals, order, stage) for order in orders]
            )
    scores = [c.score for c in candidates]
    return forecast_benefit(scores, len(problem.task.y_test), paired), stage.completion


def forecast_benefit(
    scores: Sequence[CandidateScore], images: int, paired: float | None = None
) -> BenefitForecast | None:
    """Forecast from the scores of a race, best first, on so many images, and McNemar's margin of the folds.

    Without `paired`, the margins of the race decide; None where there is nothing to compare.
    """
    margins = race_margins(scores, images)
    if margins is None:
        return None
    model = _coefficients()["race" if paired is None else "folds"]
    features = margins if paired is None else (_winner(scores), paired)
    score = model["bias"] + sum(w * x for w, x in zip(model["weights"], features, strict=True))
    return BenefitForecast(1 / (1 + exp(-score)))


def race_margins(scores: Sequence[CandidateScore], images: int) -> tuple[float, float] | None:
    """Return the margins before training and at the last epoch that both were trained to.

    `scores` come best first, on so many images. None without a generated candidate or a default.
    """
    first = _first_of_both([score.kind for score in scores])
    if first is None:
        return None
    ours, default = scores[first[0]], scores[first[1]]
    both = min(len(ours.curve), len(default.curve))
    pairs = [(ours.before, default.before)]
    pairs.append((ours.curve[both - 1][1], default.curve[both - 1][1]) if both else pairs[0])
    before, after = (_margin(*pair, images) for pair in pairs)
    return before, after


def best_rivals(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
    """Return the best generated candidate and the best default, if there are both."""
    first = _first_of_both([c.spec.kind for c in candidates])
    return (candidates[first[0]], candidates[first[1]]) if first else None


def count_discordant(
    problem: InitializationProblem,
    ours: Candidate,
    default: Candidate,
    order: int,
    stage: Stage,
) -> tuple[int, int]:
    """Return how many images the one labels rightly and the other does not, and the reverse.

    Both are trained on two thirds of the images at hand and asked about the last after one and two epochs,
    in turn.
    """
    better = worse = 0
    for fold in _folds(problem, order):
        a, b = (_correct(problem, c, fold, order, stage) for c in (ours, default))
        better += int((a & ~b).sum())
        worse += int((b & ~a).sum())
    return better, worse


def mcnemar_margin(counts: Sequence[tuple[int, int]]) -> float:
    """Return the difference of all discordant counts in its standard errors, -10 to 10."""
    better, worse = sum(b for b, _ in counts), sum(w for _, w in counts)
    return max(-_MOST, min(_MOST, (better - worse) / sqrt(better + worse + 1)))


def _winner(scores: Sequence[CandidateScore]) -> float:
    """Return 1 where a generated candidate won the race, -1 where a default did."""
    return -1.0 if scores[0].kind.family is Family.DEFAULT else 1.0


def _first_of_both(kinds: Sequence[Kind]) -> tuple[int, int] | None:
    """Return the index of the first generated kind and that of the first default, if there are both."""
    is_generated = [kind.is_generated for kind in kinds]
    both = len({*is_generated}) == 2
    return (is_generated.index(True), is_generated.index(False)) if both else None


def _folds(problem: InitializationProblem, order: int) -> Iterator[Task]:
    task = problem.task
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    rng = random_stream(problem.options.seed, "gate", order)
    shuffled = torch.randperm(len(y), generator=rng).to(y.device)
    for i in range(_FOLDS):
        out = shuffled[i::_FOLDS]
        stay = torch.ones(len(y), dtype=torch.bool, device=y.device)
        stay[out] = False
        yield replace(task, x_train=x[stay], y_train=y[stay], x_test=x[out], y_test=y[out])


def _correct(
    problem: InitializationProblem, candidate: Candidate, fold: Task, order: int, stage: Stage
) -> torch.Tensor:
    """Train on a fold and return which of its test images are right after each epoch, (epochs x N,) bool."""
    problem = replace(problem, task=fold)
    training = start_training(problem, candidate.module, candidate.score.seed + order)
    if problem.fits_classifier and candidate.spec.kind is not Kind.DEFAULT:
        fit_head(training.module, problem)
    correct = []
    for epoch in range(_EPOCHS):
        training.advance((epoch + 1) * training.steps_per_epoch, stage.check)
        correct.append(training.correct())
    return torch.cat(correct)


def _margin(ours: float, default: float, images: int) -> float:
    """Return the difference of two accuracies in its standard errors, at most 10."""
    variance = (ours * (1 - ours) + default * (1 - default)) / images + 1 / images**2
    return max(-_MOST, min(_MOST, (ours - default) / sqrt(variance)))


@lru_cache(maxsize=1)
def _coefficients() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((files("sane_plugins") / "data" / "gate.json").read_text())
    return stored
