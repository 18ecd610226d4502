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
    fit_task_classifier,
)
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import start_training
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import Task

_MARGIN_LIMIT = 10.0
ORDERS = 2
_FOLD_COUNT, _EPOCHS_PER_FOLD = 3, 2
_UNDECIDED_MARGIN = 0.1


@dataclass(frozen=True)
class BenefitForecast:
    """The probability that generated weights train better than the best default initialisation."""

    probability: float

    @property
    def helps(self) -> bool:
        """Return whether the generated weights are expected to help."""
        return self.probability >= 0.5

    @property
    def is_close(self) -> bool:
        """Return whether the forecast is too close to call."""
        return abs(self.probability - 0.5) < _UNDECIDED_MARGIN


def forecast_after_race(
    problem: InitializationProblem, candidates: Sequence[Candidate], budget: Budget
) -> tuple[BenefitForecast | None, Completion]:
    """Forecast from the candidates of a race, best first, trained in folds while time is left.

    Returns the forecast, None if there is nothing to compare, and how the training ended.
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
    """Forecast from the scores of a race, best first, on `images` images, and McNemar's margin of the folds.

    Without `paired`, the margins of the race decide; None where there is nothing to compare.
    """
    margins = race_margins(scores, images)
    if margins is None:
        return None
    model = _coefficients()["race" if paired is None else "folds"]
    features = margins if paired is None else (_race_winner(scores), paired)
    score = model["bias"] + sum(w * x for w, x in zip(model["weights"], features, strict=True))
    return BenefitForecast(1 / (1 + exp(-score)))


def race_margins(scores: Sequence[CandidateScore], images: int) -> tuple[float, float] | None:
    """Return the margins before training and at the last epoch that both were trained to.

    `scores` come best first, measured on `images` images. None without a generated candidate or a default.
    """
    indices = _first_generated_and_default([score.kind for score in scores])
    if indices is None:
        return None
    ours, default = scores[indices[0]], scores[indices[1]]
    common_epochs = min(len(ours.curve), len(default.curve))
    pairs = [(ours.before, default.before)]
    pairs.append(
        (ours.curve[common_epochs - 1][1], default.curve[common_epochs - 1][1])
        if common_epochs
        else pairs[0]
    )
    before, after = (_standardized_margin(*pair, images) for pair in pairs)
    return before, after


def best_rivals(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
    """Return the best generated candidate and the best default, if there are both."""
    indices = _first_generated_and_default([c.spec.kind for c in candidates])
    return (candidates[indices[0]], candidates[indices[1]]) if indices else None


def count_discordant(
    problem: InitializationProblem,
    ours: Candidate,
    default: Candidate,
    order: int,
    stage: Stage,
) -> tuple[int, int]:
    """Return how many images only the first classifies correctly, and how many only the second.

    Both are trained on two thirds of the images and tested on the remaining third after one and two epochs,
    for each third.
    """
    better = worse = 0
    for fold in _folds(problem, order):
        ours_correct, default_correct = (
            _train_on_fold(problem, c, fold, order, stage) for c in (ours, default)
        )
        better += int((ours_correct & ~default_correct).sum())
        worse += int((default_correct & ~ours_correct).sum())
    return better, worse


def mcnemar_margin(counts: Sequence[tuple[int, int]]) -> float:
    """Return the summed difference of discordant counts in standard errors, clipped to -10 to 10."""
    better, worse = sum(b for b, _ in counts), sum(w for _, w in counts)
    return max(-_MARGIN_LIMIT, min(_MARGIN_LIMIT, (better - worse) / sqrt(better + worse + 1)))


def _race_winner(scores: Sequence[CandidateScore]) -> float:
    """Return 1 if a generated candidate won the race, -1 if a default did."""
    return -1.0 if scores[0].kind.family is Family.DEFAULT else 1.0


def _first_generated_and_default(kinds: Sequence[Kind]) -> tuple[int, int] | None:
    """Return the index of the first generated kind and that of the first default, if there are both."""
    is_generated = [kind.is_generated for kind in kinds]
    has_both = len({*is_generated}) == 2
    return (is_generated.index(True), is_generated.index(False)) if has_both else None


def _folds(problem: InitializationProblem, order: int) -> Iterator[Task]:
    task = problem.task
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    rng = random_stream(problem.options.seed, "gate", order)
    shuffled = torch.randperm(len(y), generator=rng).to(y.device)
    for i in range(_FOLD_COUNT):
        held_out = shuffled[i::_FOLD_COUNT]
        is_training = torch.ones(len(y), dtype=torch.bool, device=y.device)
        is_training[held_out] = False
        yield replace(
            task,
            x_train=x[is_training],
            y_train=y[is_training],
            x_test=x[held_out],
            y_test=y[held_out],
        )


def _train_on_fold(
    problem: InitializationProblem, candidate: Candidate, fold: Task, order: int, stage: Stage
) -> torch.Tensor:
    """Train on a fold; return which test images are correct after each epoch, (epochs x N,) bool."""
    problem = replace(problem, task=fold)
    training = start_training(problem, candidate.module, candidate.score.seed + order)
    if problem.fits_classifier and candidate.spec.kind is not Kind.DEFAULT:
        fit_task_classifier(training.module, problem)
    correct = []
    for epoch in range(_EPOCHS_PER_FOLD):
        training.advance((epoch + 1) * training.steps_per_epoch, stage.check)
        correct.append(training.correct())
    return torch.cat(correct)


def _standardized_margin(ours: float, default: float, images: int) -> float:
    """Return the difference of two accuracies in standard errors, clipped to -10 to 10."""
    variance = (ours * (1 - ours) + default * (1 - default)) / images + 1 / images**2
    return max(-_MARGIN_LIMIT, min(_MARGIN_LIMIT, (ours - default) / sqrt(variance)))


@lru_cache(maxsize=1)
def _coefficients() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((files("sane_plugins") / "data" / "gate.json").read_text())
    return stored
