"""The search for candidates: draw, score each on a little target data, keep the best of any round.

Bootstrapping draws near the best latents of all rounds before.
The method: docs/explanation/sane.md, sections 6.5 and 7.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from sane_plugins.initialize.budget import Budget
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.options import Candidate, CandidateScore, CandidateSpec, Kind
from sane_plugins.progress import Progress, Report
from sane_plugins.runtime import random_stream

Place = tuple[int, int]
_MOST_TOKENS = 300_000  # decoding this many takes about a minute on two cores
_SHARE = 0.4  # of the budget; the rest is for training
_NEAR = 6
_EARLY = 0.5
_GENERATED: tuple[Kind, ...] = ("sane", "prompt", "mean of prompts")


@dataclass(frozen=True)
class SearchTrace:
    """Which prompts were drawn near, and for each later round which draws (round, number)."""

    near: list[int] = field(default_factory=list)
    lineage: list[list[Place]] = field(default_factory=list)


class Leaderboard:
    """The best candidates of each kind before training, and the rows of those that are not kept."""

    def __init__(self, most: dict[Kind, int]) -> None:
        self._most = most
        self._kept: dict[Kind, list[Candidate]] = {}
        self.twins: list[Candidate] = []
        self.others: list[CandidateScore] = []

    @property
    def kept(self) -> list[Candidate]:
        """Return the best of every kind, best first within a kind, and their twins."""
        return [*self.twins, *(candidate for found in self._kept.values() for candidate in found)]

    def leave(self, kind: Kind, most: int) -> None:
        """Keep only the best few of a kind."""
        self.others += [c.row for c in self.of(kind)[most:]]
        self._kept[kind] = self.of(kind)[:most]

    def of(self, kind: Kind) -> list[Candidate]:
        """Return the best of a kind, best first."""
        return self._kept.get(kind, [])

    def offer(self, new: Candidate) -> None:
        """Keep a candidate if it is among the best of its kind."""
        most = self._most[new.row.kind]
        ranked = sorted([*self.of(new.row.kind), new], key=lambda c: -c.row.before)
        self._kept[new.row.kind] = ranked[:most]
        self.others += [c.row for c in ranked[most:]]


def search(
    bench: CandidateBuilder, fresh: bool, clock: Budget, report: Report
) -> tuple[Leaderboard, SearchTrace]:
    """Return the best candidates, and the course of the search, by which they can be made again.

    Rivals come first: what is cheap and plain is there to compare with however short the budget. SANE
    candidates are drawn near the prompts that do best on the task, their classifier fitted.
    """
    options = bench.options
    plain = options.keep if options.defaults is None else options.defaults
    pool = Leaderboard(
        {
            "default": plain,
            "default, classifier fitted": plain,
            "prompt": 1,
            "mean of prompts": 1,
            "sane": options.keep,
        }
    )
    course = SearchTrace(list(range(len(bench.transfer.prompts)))[:_NEAR])
    rivals = list(_rivals(bench, plain))
    total = len(rivals) + rounds(bench) * drawn_at_once(bench)
    with clock.stage(_SHARE):
        scores = {}
        for recipe in rivals:
            # One of each kind is scored, however short the budget.
            if not (pool.of(recipe.kind) and clock.over()):
                scores[recipe] = _offer(bench, pool, recipe, None, total, report)
        course.near[:] = _best_prompts(scores) or course.near
        for r in range(rounds(bench)):
            if r:
                course.lineage.append([(c.recipe.round, c.recipe.number) for c in pool.of("sane")])
            for i, latents in enumerate(drawn(bench, course, r)):
                if pool.of("sane"):
                    clock.check()
                _offer(bench, pool, CandidateSpec("sane", i, r), latents, total, report)
                number = r * drawn_at_once(bench) + i
                if bench.fits and (number < plain or (fresh and plain)):
                    pool.offer(bench.build(CandidateSpec("default, classifier fitted", number)))
    with clock.stage(_SHARE):
        # The survivors of a pruned network have their scale.
        for recipe in _twins(pool) if bench.pruned is None else ():
            clock.check()
            pool.twins.append(bench.build(recipe, latents_of(bench, course, recipe)))
        pool.leave("sane", 1)
    return pool, course


def latents_of(
    bench: CandidateBuilder, course: SearchTrace, recipe: CandidateSpec
) -> torch.Tensor | None:
    """Return the latents (B, T, L) that a SANE candidate is decoded from; None for what has none."""
    return drawn(bench, course, recipe.round)[recipe.number] if recipe.kind == "sane" else None


def rounds(bench: CandidateBuilder) -> int:
    """Return how often candidates are drawn."""
    return bench.options.rounds if bench.options.search == "bootstrap" else 1


def drawn_at_once(bench: CandidateBuilder) -> int:
    """Return how many candidates a round draws: fewer than asked for where decoding one takes long."""
    tokens = bench.transfer.beside * bench.transfer.prompts.shape[1]
    afford = _MOST_TOKENS // (tokens * rounds(bench))
    return min(bench.options.candidates, max(bench.options.keep, afford))


def drawn(bench: CandidateBuilder, course: SearchTrace, at: int) -> torch.Tensor:
    """Return the latents (count, B, T, L) of a round, B of networks that stand side by side.

    They are drawn without a score, so that they can be made again at any time.
    """
    prompts = bench.transfer.prompts[course.near]
    if at:
        prompts = torch.cat([drawn(bench, course, r)[i] for r, i in course.lineage[at - 1]])
    rng = random_stream(bench.options.seed, "round", at)
    shape = (drawn_at_once(bench), bench.transfer.beside)
    latents = bench.sampler(prompts, shape[0] * shape[1], rng)
    return latents.view(*shape, *latents.shape[1:])


def _rivals(bench: CandidateBuilder, plain: int) -> Iterator[CandidateSpec]:
    """Yield what SANE candidates are compared with, apart from defaults with a fitted classifier."""
    for number in range(plain):
        yield CandidateSpec("default", number)
    count = len(bench.transfer.aligned) if plain else 0
    for number in range(count):
        yield CandidateSpec("prompt", number)
    if count > 1:
        yield CandidateSpec("mean of prompts")


def _best_prompts(scores: dict[CandidateSpec, float]) -> list[int]:
    found = {recipe.number: score for recipe, score in scores.items() if recipe.kind == "prompt"}
    return sorted(sorted(found, key=lambda number: -found[number])[:_NEAR])


def _twins(pool: Leaderboard) -> list[CandidateSpec]:
    """Return what is tried at the default's scale too, and the best SANE candidate's first layers alone."""
    same = [replace(c.recipe, scale="default") for kind in _GENERATED for c in pool.of(kind)]
    return [*same[:1], *(replace(recipe, layers=_EARLY) for recipe in same[:1]), *same[1:]]


def _offer(
    bench: CandidateBuilder,
    pool: Leaderboard,
    recipe: CandidateSpec,
    latents: torch.Tensor | None,
    total: int,
    report: Report,
) -> float:
    new = bench.build(recipe, latents)
    pool.offer(new)
    done = len([c for c in pool.kept if "fitted" not in c.row.kind])
    done += len([row for row in pool.others if "fitted" not in row.kind])
    report(Progress(job="draw and score", done=done, total=total, note=f"{new.row.before:.3f}"))
    return new.row.before
