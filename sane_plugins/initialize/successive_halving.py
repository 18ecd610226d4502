"""Successive halving: train all candidates a little, the better half longer, the best of these to the end.

The method: docs/explanation/sane.md, section 6.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from math import ceil
from time import monotonic

import torch

from sane_plugins.initialize.budget import Budget
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.options import Candidate
from sane_plugins.initialize.training import TrainingRun
from sane_plugins.progress import Progress, Report

PLAINEST = ("default", "default, classifier fitted", "prompt", "mean of prompts", "sane")
_RUNGS = (0.25, 0.5, 1.0)
_COST = 0.75  # of training every candidate to the end, scores included
_FEWEST = 4


def race(
    bench: CandidateBuilder, candidates: Sequence[Candidate], clock: Budget, report: Report
) -> list[Candidate]:
    """Return the candidates with their curves, best first; each keeps its initial weights.

    Those that were trained longer rank first, a tie goes to the plainer. A rung counts where all who
    started it finished it in time, so that equals are compared.
    """
    epoch = ceil(len(bench.task.y_train) / bench.options.train.batch)
    alive, out = _spread(candidates), list[Candidate]()
    steps = epoch * bench.options.epochs
    with clock.stage(1.0):
        many, steps = _affordable(bench, alive, steps, clock)
        alive, out = alive[:many], alive[many:]
        trials = {id(c.module): trial(bench, c) for c in alive}
        rungs = sorted({max(1, ceil(steps * share)) for share in _RUNGS})
        for rung in rungs:
            scores = []
            for i, c in enumerate(alive):
                trials[id(c.module)].advance(rung, clock.check)
                scores.append(trials[id(c.module)].score())
                note = f"{rung / epoch:.2f} epochs, {c.row.name} {scores[-1]:.3f}"
                report(
                    Progress(
                        job=f"train, rung {rungs.index(rung) + 1} of {len(rungs)}",
                        done=i + 1,
                        total=len(alive),
                        note=note,
                    )
                )
            is_last = rung == epoch * bench.options.epochs
            pairs = zip(alive, scores, strict=True)
            alive = ranked([_at(c, rung / epoch, score, is_last) for c, score in pairs])
            if rung != rungs[-1]:
                alive, left = _better_half(alive)
                out += left
    return ranked([*alive, *out])


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return them best first."""
    return sorted(
        candidates,
        key=lambda c: (
            -len(c.row.curve),
            -(c.row.curve[-1][1] if c.row.curve else c.row.before),
            PLAINEST.index(c.row.kind),
        ),
    )


def family(kind: str) -> str:
    """Return what a reader chooses between: `sane`, `default` or `prompt`."""
    return "prompt" if "prompt" in kind else kind.partition(",")[0]


def _affordable(
    bench: CandidateBuilder, alive: Sequence[Candidate], steps: int, clock: Budget
) -> tuple[int, int]:
    """Return how many candidates, for how many steps, there is time for: fewer first, then shorter."""
    if clock.left == float("inf"):
        return len(alive), steps
    first = trial(bench, alive[0])
    first.advance(1, clock.check)
    start = monotonic()
    first.advance(6, clock.check)
    first.score()
    each = _COST * (monotonic() - start) / 5
    many = min(len(alive), max(_FEWEST, int(clock.left / (each * steps))))
    afford = min(steps, max(1, int(clock.left / (each * many))))
    clock.cut |= many < len(alive) or afford < steps
    return many, afford


def trial(bench: CandidateBuilder, candidate: Candidate) -> TrainingRun:
    """Return the training of a copy of a candidate, always in the same order of images."""
    rng = torch.Generator().manual_seed(candidate.row.seed)
    return TrainingRun(
        deepcopy(candidate.module), bench.task, bench.options.train, rng, bench.pruned
    )


def _at(candidate: Candidate, epochs: float, score: float, is_last: bool) -> Candidate:
    curve = (*candidate.row.curve, (round(epochs, 3), score))
    return replace(
        candidate,
        row=replace(candidate.row, curve=curve, after=score if is_last else None),
    )


def _spread(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Order by the rank within each kind: the first few hold the best of every kind."""
    seen: dict[str, int] = {}
    ranks = {}
    for c in sorted(ranked(candidates), key=lambda c: c.recipe.scale):  # the default's scale first
        ranks[id(c)] = seen[c.row.kind] = seen.get(c.row.kind, 0) + 1
    return sorted(candidates, key=lambda c: (ranks[id(c)], -c.row.before))


def _better_half(best_first: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Part the better half, and the best of each family, from the rest."""
    stay: list[Candidate] = []
    for i, c in enumerate(best_first):
        is_first = family(c.row.kind) not in {family(x.row.kind) for x in best_first[:i]}
        if is_first or i < ceil(len(best_first) / 2):
            stay.append(c)
    return stay, [c for c in best_first if c not in stay]
