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

_RUNGS = (0.25, 0.5, 1.0)
_COST = 0.75  # of training every candidate to the end, scores included
_FEWEST = 4
_WARM_UP, _TIMED = 1, 5  # steps


@dataclass(frozen=True, eq=False)
class RaceResult:
    """Candidates with their curves, best first, and how the race ended."""

    candidates: tuple[Candidate, ...]
    completion: Completion


def race(
    problem: InitializationProblem, candidates: Sequence[Candidate], budget: Budget, report: Report
) -> RaceResult:
    """Train copies of the candidates, rung by rung; each candidate keeps its initial weights.

    Those that were trained longer rank first, a tie goes to the plainer. A rung counts where all who
    started it finished it in time, so that equals are compared.
    """
    epoch = ceil(len(problem.task.y_train) / problem.options.train.batch)
    steps = whole = epoch * problem.options.epochs
    running, out, left_out = _best_of_each_kind_first(candidates), list[Candidate](), Completion()
    with Stage(budget.end()) as stage:
        count, steps = _affordable(problem, running, steps, budget, stage)
        left_out = Completion(cut=count < len(running) or steps < whole)
        running, out = running[:count], running[count:]
        training = {id(c.module): _start(problem, c) for c in running}
        rungs = sorted({max(1, ceil(steps * share)) for share in _RUNGS})
        for i, rung in enumerate(rungs):
            scores = []
            for j, candidate in enumerate(running):
                run = training[id(candidate.module)]
                run.advance(rung, stage.check)
                scores.append(run.score())
                note = f"{rung / epoch:.2f} epochs, {candidate.score.name} {scores[-1]:.3f}"
                job = f"train, rung {i + 1} of {len(rungs)}"
                report(Progress(job=job, done=j + 1, total=len(running), note=note))
            pairs = zip(running, scores, strict=True)
            running = ranked([_scored(c, rung / epoch, x, rung == whole) for c, x in pairs])
            if rung != rungs[-1]:
                running, left = _better_half(running)
                out += left
    return RaceResult(tuple(ranked([*running, *out])), left_out | stage.completion)


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates best first."""
    return sorted(
        candidates, key=lambda c: (-len(c.score.curve), -c.score.last, c.score.kind.plainness)
    )


def _start(problem: InitializationProblem, candidate: Candidate) -> TrainingRun:
    return start_training(problem, candidate.module, candidate.score.seed)


def _affordable(
    problem: InitializationProblem,
    running: Sequence[Candidate],
    steps: int,
    budget: Budget,
    stage: Stage,
) -> tuple[int, int]:
    """Return how many candidates, for how many steps, there is time for: fewer first, then shorter."""
    if budget.left == float("inf"):
        return len(running), steps
    first = _start(problem, running[0])
    first.advance(_WARM_UP, stage.check)
    start = monotonic()
    first.advance(_WARM_UP + _TIMED, stage.check)
    first.score()
    each = _COST * (monotonic() - start) / _TIMED
    count = min(len(running), max(_FEWEST, int(budget.left / (each * steps))))
    return count, min(steps, max(1, int(budget.left / (each * count))))


def _scored(candidate: Candidate, epochs: float, accuracy: float, is_last: bool) -> Candidate:
    curve = (*candidate.score.curve, (round(epochs, 3), accuracy))
    score = replace(candidate.score, curve=curve, after=accuracy if is_last else None)
    return replace(candidate, score=score)


def _best_of_each_kind_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order by the rank within each kind: the first few hold the best of every kind."""
    count: dict[Kind, int] = {}
    ranks = {}
    for c in sorted(ranked(candidates), key=lambda c: c.spec.scale):  # the default's scale first
        ranks[id(c)] = count[c.spec.kind] = count.get(c.spec.kind, 0) + 1
    return sorted(candidates, key=lambda c: (ranks[id(c)], -c.score.before))


def _better_half(best_first: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Part the better half, and the best of each family, from the rest."""
    stay, rest, families = list[Candidate](), list[Candidate](), set[Family]()
    for i, candidate in enumerate(best_first):
        is_first = candidate.spec.kind.family not in families
        families.add(candidate.spec.kind.family)
        (stay if is_first or i < ceil(len(best_first) / 2) else rest).append(candidate)
    return stay, rest
