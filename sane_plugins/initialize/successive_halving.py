"""Successive halving: train all finalists a little, the better half longer, the best of these to the end.

The method: docs/explanation/sane.md, section 6.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from sane_plugins.grafting import has_statistics
from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import Candidate
from sane_plugins.initialize.choice import choose, ranked
from sane_plugins.initialize.kinds import Family, Kind
from sane_plugins.initialize.plan import Plan, rungs_of
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import TrainingRun, accuracy_anew, start_training
from sane_plugins.progress import Progress, Report
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import Task, correct


@dataclass(frozen=True, eq=False)
class RaceResult:
    """Candidates with their curves, the chosen one first and then best first, and how the race ended."""

    candidates: tuple[Candidate, ...]
    completion: Completion


def race(
    problem: InitializationProblem,
    plan: Plan,
    candidates: Sequence[Candidate],
    budget: Budget,
    report: Report,
) -> RaceResult:
    """Train copies of the finalists, rung by rung; each candidate keeps its initial weights.

    Candidates trained longer rank first; of those about equal, the plainest is chosen. A rung counts only if
    every candidate that started it finished it in time, so that all have trained equally long.
    """
    train = replace(problem.options.train, batch=plan.batch)
    options = replace(problem.options, train=train)
    problem = replace(problem, task=asked_about(problem, plan), options=options)
    waiting = finalists_first(candidates)
    count = plan.finalists if plan.steps else 0
    running, others = waiting[:count], waiting[count:]
    with Stage(budget.end()) as stage:
        training: dict[int, TrainingRun] = {}
        scored = list[Candidate]()
        for candidate in running:
            stage.check()
            training[id(candidate.module)] = _start_run(problem, candidate)
            scored.append(with_start(candidate, problem.task))
        running = scored
        epoch_steps = ceil(len(problem.task.y_train) / problem.options.train.batch)
        rungs = rungs_of(plan.steps) if running else []
        for i, rung in enumerate(rungs):
            advanced = []
            for j, candidate in enumerate(running):
                run = training[id(candidate.module)]
                run.advance(rung, stage.check)
                is_last = rung == epoch_steps * problem.options.epochs
                advanced.append(_with_rung(candidate, run, rung / epoch_steps, is_last))
                name, share = candidate.score.name, advanced[-1].score.last
                note = f"{rung / epoch_steps:.2f} epochs, {name} {share:.3f}"
                job = f"train, rung {i + 1} of {len(rungs)}"
                report(Progress(job=job, done=j + 1, total=len(running), note=note))
            running = ranked(advanced)
            if rung != rungs[-1]:
                running, worse_half = _better_half(running)
                for candidate in worse_half:
                    del training[id(candidate.module)]
                others = [*others, *worse_half]
    return RaceResult(tuple(choose([*running, *others], problem.chance)), stage.completion)


def finalists_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Interleave the families: the best of each, then the second of each, and so on.

    Variants at the default's scale, which compute the same and learn faster, come before others of their
    family, and of defaults those with a fitted classifier, which are the fair rivals of what is fitted.
    """
    count: dict[Family, int] = {}
    places = {}
    for c in sorted(candidates, key=_place_in_family):
        family = c.spec.kind.family
        places[id(c)] = count[family] = count.get(family, 0) + 1
    return sorted(candidates, key=lambda c: (places[id(c)], _loss(c), c.spec.kind.plainness))


def _place_in_family(candidate: Candidate) -> tuple[bool, bool, float]:
    spec = candidate.spec
    is_bare = spec.kind is Kind.DEFAULT
    is_lent = spec.kind.family in (Family.SANE, Family.PROMPT)
    return is_bare, is_lent and spec.scale != "default", _loss(candidate)


def _loss(candidate: Candidate) -> float:
    loss = candidate.score.loo_loss
    return float("inf") if loss is None or loss != loss else loss


def asked_about(problem: InitializationProblem, plan: Plan) -> Task:
    """Return the task with as many held-out images as the plan asks about."""
    task = problem.task
    if plan.held_out >= len(task.y_test):
        return task
    rng = random_stream(problem.options.seed, "held out")
    some = torch.randperm(len(task.y_test), generator=rng)[: plan.held_out].to(task.y_test.device)
    return replace(task, x_test=task.x_test[some], y_test=task.y_test[some])


def _start_run(problem: InitializationProblem, candidate: Candidate) -> TrainingRun:
    return start_training(problem, candidate.module, candidate.score.seed)


def with_start(candidate: Candidate, task: Task) -> Candidate:
    """Ask a candidate before training: as it is, and with the statistics of its norms measured anew.

    Statistics that were measured on the task's images already are not measured again.
    """
    answers = correct(candidate.module, task.x_test, task.y_test).cpu()
    before = anew = int(answers.sum()) / len(answers)
    spec = candidate.spec
    if spec.kind is Kind.DEFAULT or spec.statistics == "own":
        anew = accuracy_anew(candidate.module, task)
    norms = has_statistics(candidate.module)
    score = replace(candidate.score, before=before, before_anew=anew if norms else None)
    return replace(candidate, score=score, answers=answers)


def _with_rung(candidate: Candidate, run: TrainingRun, epochs: float, is_last: bool) -> Candidate:
    answers = run.correct().cpu()
    share = int(answers.sum()) / len(answers)
    if share < (candidate.score.best or 0.0) and candidate.answers is not None:
        answers = candidate.answers
    curve = (*candidate.score.curve, (round(epochs, 3), share))
    score = replace(candidate.score, curve=curve, after=share if is_last else None)
    return replace(candidate, score=score, answers=answers)


def _better_half(best_first: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Split the candidates into the better half with the best of each family, and the rest."""
    better, rest, families = list[Candidate](), list[Candidate](), set[Family]()
    for i, candidate in enumerate(best_first):
        is_first = candidate.spec.kind.family not in families
        families.add(candidate.spec.kind.family)
        (better if is_first or i < ceil(len(best_first) / 2) else rest).append(candidate)
    return better, rest
