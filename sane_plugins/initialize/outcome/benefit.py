"""The forecast (the gate): whether the weights of a family help, from the scores of a short race.

It is told of weights that a SANE generated and of weights that were transferred, apart. Each family is
compared with the best default that was trained as long, if a fair rival is among these: one with a fitted
classifier, where that of the family's best candidate is fitted. A logistic regression on the margin of both,
trained in three folds, twice (McNemar's test: paired, on all images). Where there is no time for that: on
the margin of the race, in standard errors of a difference of two accuracies. Fitted by
`tools/release/fit_gate.py`, chosen among others by `benchmarks/gate.py`, on runs of other tasks.
The method: docs/explanation/sane.md, section 13.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from math import exp, sqrt
from typing import Any

import torch

from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import Candidate, fit_task_classifier
from sane_plugins.initialize.kinds import CandidateScore, Family, Kind
from sane_plugins.initialize.plan import FOLD_EPOCHS, FOLDS, Plan
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import start_training
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import Task

FORECAST_FAMILIES = (Family.SANE, Family.TRANSFER)
_MARGIN_LIMIT = 10.0
_UNDECIDED_MARGIN = 0.1


@dataclass(frozen=True)
class BenefitForecast:
    """The probability that a family's weights train better than the best default initialisation."""

    probability: float

    @property
    def helps(self) -> bool:
        """Return whether the weights are expected to help."""
        return self.probability >= 0.5

    @property
    def is_close(self) -> bool:
        """Return whether the forecast is too close to call."""
        return abs(self.probability - 0.5) < _UNDECIDED_MARGIN

    @property
    def helps_clearly(self) -> bool:
        """Return whether the weights are expected to help, and that is not too close to call."""
        return self.helps and not self.is_close


def forecast_after_race(
    problem: InitializationProblem,
    plan: Plan,
    candidates: Sequence[Candidate],
    budget: Budget,
    report: Report = silent,
) -> tuple[dict[Family, BenefitForecast], Completion]:
    """Forecast each family from the candidates of a race, trained in folds where that was planned.

    Returns the forecasts of the families that have a candidate and a fair rival, both trained, and how the
    training ended.
    """
    rivals = {
        family: pair
        for family in FORECAST_FAMILIES
        if (pair := best_rivals(candidates, family, problem.fits_classifier)) is not None
    }
    paired: dict[Family, float] = {}
    with Stage(budget.end()) as stage:
        for done, (family, pair) in enumerate(rivals.items() if plan.fold_orders else ()):
            counts = []
            for order in range(plan.fold_orders):
                report(
                    Progress(
                        job="forecast the gain, train on other splits",
                        done=done * plan.fold_orders + order,
                        total=len(rivals) * plan.fold_orders,
                        note=pair[0].score.name,
                    )
                )
                counts.append(count_discordant(problem, *pair, order, stage))
            paired[family] = mcnemar_margin(counts)
    images = min(plan.held_out, len(problem.task.y_test))
    forecasts = {
        family: forecast_benefit(pair[0].score, pair[1].score, images, paired.get(family))
        for family, pair in rivals.items()
    }
    return forecasts, stage.completion


def forecast_benefit(
    ours: CandidateScore, default: CandidateScore, images: int, paired: float | None = None
) -> BenefitForecast:
    """Forecast from two scores of a race on `images` images, or from McNemar's margin of the folds."""
    model = _coefficients()["race" if paired is None else "folds"]
    margin = standardized_margin(*common_best(ours, default), images) if paired is None else paired
    return BenefitForecast(1 / (1 + exp(-(model["bias"] + model["weights"][0] * margin))))


def common_best(ours: CandidateScore, default: CandidateScore) -> tuple[float, float]:
    """Return the best accuracies of both until the last rung that both were trained to."""
    common = min(len(ours.curve), len(default.curve))
    mine, others = (replace(x, curve=x.curve[:common]).best or 0.0 for x in (ours, default))
    return mine, others


def standardized_margin(ours: float, default: float, images: int) -> float:
    """Return the difference of two accuracies in standard errors, clipped to -10 to 10."""
    variance = (ours * (1 - ours) + default * (1 - default)) / images + 1 / images**2
    return max(-_MARGIN_LIMIT, min(_MARGIN_LIMIT, (ours - default) / sqrt(variance)))


def best_rivals(
    candidates: Sequence[Candidate], family: Family, fits_classifier: bool
) -> tuple[Candidate, Candidate] | None:
    """Return a family's best trained candidate and the best trained default; None without a fair rival."""
    trained = [c for c in candidates if c.score.curve]
    ours = [c for c in trained if c.spec.kind.family is family]
    defaults = [c for c in trained if c.spec.kind.family is Family.DEFAULT]
    fair = Kind.DEFAULT_FITTED if fits_classifier else Kind.DEFAULT
    if not ours or not any(c.spec.kind is fair for c in defaults):
        return None
    return _longest_and_best(ours), _longest_and_best(defaults)


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


def _longest_and_best(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=lambda c: (len(c.score.curve), c.score.best))


def _folds(problem: InitializationProblem, order: int) -> Iterator[Task]:
    task = problem.task
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    rng = random_stream(problem.options.seed, "gate", order)
    shuffled = torch.randperm(len(y), generator=rng).to(y.device)
    for i in range(FOLDS):
        held_out = shuffled[i::FOLDS]
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
        fit_task_classifier(training.module, problem, candidate.spec.kind)
    correct = []
    for epoch in range(FOLD_EPOCHS):
        training.advance((epoch + 1) * training.steps_per_epoch, stage.check)
        correct.append(training.correct())
    return torch.cat(correct)


@lru_cache(maxsize=1)
def _coefficients() -> Mapping[str, Any]:
    stored: dict[str, Any] = json.loads((files("sane_plugins") / "data" / "gate.json").read_text())
    return stored
