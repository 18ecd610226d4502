"""Successive halving: train all candidates a little, the better half longer, the best of these to the end.

The method: docs/explanation/sane.md, section 6.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from time import monotonic

from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import Candidate, Family, Kind
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import TrainingRun, start_training
from sane_plugins.progress import Progress, Report

_RUNG_FRACTIONS = (0.25, 0.5, 1.0)
_COST_FRACTION = 0.75  # of the cost of training every candidate to the end, scores included
_MIN_CANDIDATES = 4
_WARM_UP_STEPS, _TIMED_STEPS = 1, 5


@dataclass(frozen=True, eq=False)
class RaceResult:
    """Candidates with their curves, best first, and how the race ended."""

    candidates: tuple[Candidate, ...]
    completion: Completion


def race(
    problem: InitializationProblem, candidates: Sequence[Candidate], budget: Budget, report: Report
) -> RaceResult:
    """Train copies of the candidates, rung by rung; each candidate keeps its initial weights.

    Candidates trained longer rank first; a tie goes to the plainer kind. A rung counts only if every
    candidate that started it finished it in time, so that all have trained equally long.
    """
    epoch_steps = ceil(len(problem.task.y_train) / problem.options.train.batch)
    steps = full_steps = epoch_steps * problem.options.epochs
    running, eliminated = _best_of_each_kind_first(candidates), list[Candidate]()
    reduction = Completion()
    with Stage(budget.end()) as stage:
        count, steps = _fit_to_budget(problem, running, steps, budget, stage)
        reduction = Completion(timed_out=count < len(running) or steps < full_steps)
        running, eliminated = running[:count], running[count:]
        training = {id(c.module): _start_run(problem, c) for c in running}
        rungs = sorted({max(1, ceil(steps * share)) for share in _RUNG_FRACTIONS})
        for i, rung in enumerate(rungs):
            scores = []
            for j, candidate in enumerate(running):
                run = training[id(candidate.module)]
                run.advance(rung, stage.check)
                scores.append(run.score())
                note = f"{rung / epoch_steps:.2f} epochs, {candidate.score.name} {scores[-1]:.3f}"
                job = f"train, rung {i + 1} of {len(rungs)}"
                report(Progress(job=job, done=j + 1, total=len(running), note=note))
            pairs = zip(running, scores, strict=True)
            running = ranked(
                [
                    _with_rung_score(c, rung / epoch_steps, score, rung == full_steps)
                    for c, score in pairs
                ]
            )
            if rung != rungs[-1]:
                running, worse_half = _better_half(running)
                eliminated += worse_half
    return RaceResult(tuple(ranked([*running, *eliminated])), reduction | stage.completion)


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates best first."""
    return sorted(
        candidates, key=lambda c: (-len(c.score.curve), -c.score.last, c.score.kind.plainness)
    )


def _start_run(problem: InitializationProblem, candidate: Candidate) -> TrainingRun:
    return start_training(problem, candidate.module, candidate.score.seed)


def _fit_to_budget(
    problem: InitializationProblem,
    running: Sequence[Candidate],
    steps: int,
    budget: Budget,
    stage: Stage,
) -> tuple[int, int]:
    """Return how many candidates to train for how many steps: first fewer candidates, then fewer steps."""
    if budget.remaining == float("inf"):
        return len(running), steps
    run = _start_run(problem, running[0])
    run.advance(_WARM_UP_STEPS, stage.check)
    start = monotonic()
    run.advance(_WARM_UP_STEPS + _TIMED_STEPS, stage.check)
    run.score()
    step_seconds = _COST_FRACTION * (monotonic() - start) / _TIMED_STEPS
    count = min(len(running), max(_MIN_CANDIDATES, int(budget.remaining / (step_seconds * steps))))
    return count, min(steps, max(1, int(budget.remaining / (step_seconds * count))))


def _with_rung_score(
    candidate: Candidate, epochs: float, accuracy: float, is_last: bool
) -> Candidate:
    curve = (*candidate.score.curve, (round(epochs, 3), accuracy))
    score = replace(candidate.score, curve=curve, after=accuracy if is_last else None)
    return replace(candidate, score=score)


def _best_of_each_kind_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Interleave the kinds: the best of each, then the second; variants at the default's scale come first."""
    count: dict[Kind, int] = {}
    ranks = {}
    for c in sorted(
        ranked(candidates), key=lambda c: c.spec.scale != "default"
    ):  # the default's scale first
        ranks[id(c)] = count[c.spec.kind] = count.get(c.spec.kind, 0) + 1
    return sorted(candidates, key=lambda c: (ranks[id(c)], -c.score.before))


def _better_half(best_first: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Split the candidates into the better half with the best of each family, and the rest."""
    better, rest, families = list[Candidate](), list[Candidate](), set[Family]()
    for i, candidate in enumerate(best_first):
        is_first = candidate.spec.kind.family not in families
        families.add(candidate.spec.kind.family)
        (better if is_first or i < ceil(len(best_first) / 2) else rest).append(candidate)
    return better, rest
