"""The search for candidates: draw, score each on a little target data, keep the best of all rounds.

Bootstrapping draws near the best latents of all rounds before; few-shot prompts are the best candidates,
trained on the new task for a while. The method: docs/explanation/sane.md, sections 6.1, 6.5 and 7.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch

from sane_plugins.errors import SourceError
from sane_plugins.generation import SamplerError, draw
from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import (
    Candidate,
    CandidateBuilder,
    CandidateScore,
    CandidateSpec,
    Kind,
)
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import start_training
from sane_plugins.progress import Progress, Report
from sane_plugins.runtime import random_stream
from sane_plugins.tasks import accuracy
from sane_plugins.weights import WeightGraph, from_module

_MAX_DECODED_TOKENS = 300_000  # decoding this many takes about a minute on two cores
_BUDGET_FRACTION = 0.4  # of the budget is for the search; the rest is for training
_MAX_PROMPTS = 6  # to draw near
_EARLY_LAYERS_FRACTION = 0.5


class DrawId(NamedTuple):
    """Which draw of latents: the round, and its number within the round."""

    round: int
    number: int


@dataclass(frozen=True)
class SearchTrace:
    """The prompts drawn near, and for each later round the draws drawn near: enough to repeat all draws."""

    near: tuple[int, ...] = ()
    lineage: tuple[tuple[DrawId, ...], ...] = ()

    def with_round(self, draws: Sequence[DrawId]) -> SearchTrace:
        """Return the trace with one more round, drawn near these draws."""
        return replace(self, lineage=(*self.lineage, tuple(draws)))


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """The best candidates of each kind before training, and the scores of the dropped ones.

    `limits` says how many of a kind are kept. `variants` are the best ones at another scale, or in part.
    """

    limits: Mapping[Kind, int]
    ranked: Mapping[Kind, tuple[Candidate, ...]] = field(default_factory=dict)
    variants: tuple[Candidate, ...] = ()
    dropped: tuple[CandidateScore, ...] = ()

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """Return the variants, and the best of every kind, best first within a kind."""
        return (*self.variants, *(c for candidates in self.ranked.values() for c in candidates))

    def best(self, kind: Kind) -> tuple[Candidate, ...]:
        """Return the kept candidates of a kind, best first."""
        return self.ranked.get(kind, ())

    def with_candidate(self, new: Candidate) -> Leaderboard:
        """Return the board after a candidate, which is kept if it is among the best of its kind."""
        kind = new.spec.kind
        ranked = sorted((*self.best(kind), new), key=lambda c: -c.score.before)
        board = replace(self, ranked={**self.ranked, kind: tuple(ranked)})
        return board.with_limit(kind, self.limits[kind])

    def with_variant(self, new: Candidate) -> Leaderboard:
        """Return the board with one more variant."""
        return replace(self, variants=(*self.variants, new))

    def with_limit(self, kind: Kind, limit: int) -> Leaderboard:
        """Return the board with at most `limit` candidates of a kind."""
        best, others = self.best(kind)[:limit], self.best(kind)[limit:]
        dropped = (*self.dropped, *(c.score for c in others))
        return replace(self, ranked={**self.ranked, kind: best}, dropped=dropped)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The result of a search: candidates to train, the trace that reproduces them, and how it ended.

    `sampler_error` says why there are no SANE candidates, or no more of them.
    """

    board: Leaderboard
    trace: SearchTrace
    completion: Completion
    sampler_error: SamplerError | None = None


@dataclass(frozen=True)
class FewShotPrompts:
    """Which candidates were trained to draw near, and the trace of the search that they are from."""

    specs: tuple[CandidateSpec, ...]
    trace: SearchTrace

    def to_json(self) -> dict[str, Any]:
        """Return what a provenance holds."""
        return {"recipes": [asdict(spec) for spec in self.specs], "course": asdict(self.trace)}


def search(problem: InitializationProblem, budget: Budget, report: Report) -> SearchResult:
    """Draw and score candidates, then try the best at the default's scale too.

    Ctrl-C ends the search; before the first candidate, it is raised. A sampler that fails ends the drawing;
    `SamplerError` is raised where that leaves nothing to compare.
    """
    drawn = _draw_and_score(problem, budget, report)
    if drawn.sampler_error is not None and not drawn.board.kept:
        raise drawn.sampler_error
    return _try_variants(problem, drawn, budget.after(drawn.completion))


def _draw_and_score(problem: InitializationProblem, budget: Budget, report: Report) -> SearchResult:
    """Score baselines, and in each round SANE candidates and as many defaults with a fitted classifier.

    Baselines come first, so that there is something to compare with however short the budget. SANE
    candidates are drawn near the prompts that do best on the task, their classifier fitted.
    """
    options, builder = problem.options, CandidateBuilder(problem)
    board = Leaderboard(_kept_per_kind(problem))
    trace = SearchTrace(tuple(range(len(problem.transfer.prompts)))[:_MAX_PROMPTS])
    baselines, draws = _baseline_specs(problem), draws_per_round(problem)
    total, done, skipped = len(baselines) + options.search_rounds * draws, 0, Completion()
    prompt_scores: dict[int, float] = {}
    failure: SamplerError | None = None
    with Stage(budget.end(_BUDGET_FRACTION), has_result=False) as stage:
        for spec in baselines:
            # One of each kind is scored, however short the budget.
            if board.best(spec.kind) and stage.is_over:
                skipped = Completion(timed_out=True)
                continue
            candidate = score_candidate(builder, spec)
            board, done, stage.has_result = board.with_candidate(candidate), done + 1, True
            _report(report, candidate, done, total)
            if spec.kind is Kind.PROMPT:
                prompt_scores[spec.number] = candidate.score.before
        trace = replace(trace, near=_best_prompts(prompt_scores) or trace.near)
        for round_ in range(options.search_rounds):
            if round_:
                best = board.best(Kind.SANE)
                trace = trace.with_round([DrawId(c.spec.round, c.spec.number) for c in best])
            try:
                drawn: Sequence[torch.Tensor | None] = [*draw_round(problem, trace, round_)]
            except SamplerError as error:
                drawn, failure = [None] * draws, error
            for i, latents in enumerate(drawn):
                if board.best(Kind.SANE) or latents is None:
                    stage.check()
                if latents is not None:
                    spec = CandidateSpec(Kind.SANE, i, round_)
                    candidate = score_candidate(builder, spec, latents)
                    board, done, stage.has_result = board.with_candidate(candidate), done + 1, True
                    _report(report, candidate, done, total)
                number = round_ * draws + i
                if _tries_fitted_default(problem, number):
                    spec = CandidateSpec(Kind.DEFAULT_FITTED, number)
                    board = board.with_candidate(score_candidate(builder, spec))
            if failure is not None:
                break
    return SearchResult(board, trace, skipped | stage.completion, failure)


def _try_variants(
    problem: InitializationProblem, drawn: SearchResult, budget: Budget
) -> SearchResult:
    """Score the best at the default's scale too, and of a SANE candidate the first layers alone."""
    builder, board, failure = CandidateBuilder(problem), drawn.board, drawn.sampler_error
    with Stage(budget.end(_BUDGET_FRACTION)) as stage:
        # The survivors of a pruned network have their scale.
        for spec in _variant_specs(board) if problem.pruned is None else ():
            stage.check()
            try:
                latents = draw_latents(problem, drawn.trace, spec)
            except SamplerError as error:
                failure = error
                continue
            board = board.with_variant(score_candidate(builder, spec, latents))
        board = board.with_limit(Kind.SANE, 1)
    return SearchResult(board, drawn.trace, drawn.completion | stage.completion, failure)


def score_candidate(
    builder: CandidateBuilder, spec: CandidateSpec, latents: torch.Tensor | None = None
) -> Candidate:
    """Build a candidate and measure its accuracy on held-out images, without training."""
    problem, built = builder.problem, builder.build(spec, latents)
    score = CandidateScore(
        name=spec.name(problem.transfer),
        kind=spec.kind,
        seed=built.seed,
        before=accuracy(built.module, problem.task.x_test, problem.task.y_test),
    )
    return Candidate(spec, built.module, built.origins, score)


def draws_per_round(problem: InitializationProblem) -> int:
    """Return how many candidates a round draws: fewer than asked for where decoding one takes long."""
    options, transfer = problem.options, problem.transfer
    tokens = transfer.prompts_per_network * transfer.prompts.shape[1]
    affordable = _MAX_DECODED_TOKENS // (tokens * options.search_rounds)
    return min(options.candidates, max(options.keep, affordable))


def draw_round(problem: InitializationProblem, trace: SearchTrace, round_: int) -> torch.Tensor:
    """Draw the latents (count, B, T, L) of a round, B of prompts placed side by side.

    They are drawn without a score, so that they can be made again at any time. Raises `SourceError` for a
    trace of other prompts or draws than there are.
    """
    draws, side_by_side = draws_per_round(problem), problem.transfer.prompts_per_network
    _require_known("prompt", trace.near, len(problem.transfer.prompts))
    prompts, rounds = problem.transfer.prompts[list(trace.near)], list[torch.Tensor]()
    for number in range(round_ + 1):
        if number:
            _require_known("round", (number - 1,), len(trace.lineage))
            earlier = trace.lineage[number - 1]
            _require_known("round", [d.round for d in earlier], number)
            _require_known("draw", [d.number for d in earlier], draws)
            prompts = torch.cat([rounds[d.round][d.number] for d in earlier])
        rng = random_stream(problem.options.seed, "round", number)
        latents = draw(problem.sampler, prompts, draws * side_by_side, rng)
        rounds.append(latents.view(draws, side_by_side, *latents.shape[1:]))
    return rounds[round_]


def _require_known(what: str, numbers: Sequence[int], count: int) -> None:
    """Raise `SourceError` unless there are numbers, and each is of one of `count` things."""
    unknown = [number for number in numbers if not 0 <= number < count]
    if unknown or not numbers:
        raise SourceError(
            "its course",
            f"it names {what} {unknown[0]}" if unknown else f"it names no {what}",
            f"they are numbered from 0, and {count} in all",
            "name a file from sane-init",
        )


def draw_latents(
    problem: InitializationProblem, trace: SearchTrace, spec: CandidateSpec
) -> torch.Tensor | None:
    """Draw the latents (B, T, L) that a SANE candidate is decoded from; None for any other kind."""
    if spec.kind is not Kind.SANE:
        return None
    _require_known("draw", (spec.number,), draws_per_round(problem))
    return draw_round(problem, trace, spec.round)[spec.number]


def train_few_shot(
    problem: InitializationProblem, few_shot: FewShotPrompts, report: Report
) -> list[WeightGraph]:
    """Train the candidates on the task's training images; the same problem gives the same networks."""
    trained, builder = [], CandidateBuilder(problem)
    for i, spec in enumerate(few_shot.specs):
        built = builder.build(spec, draw_latents(problem, few_shot.trace, spec))
        training = start_training(problem, built.module, built.seed)
        training.advance(training.steps_per_epoch * problem.options.few_shot_epochs)
        name = spec.name(problem.transfer)
        note = f"{name} {training.score():.3f}"
        report(Progress(job="train prompts", done=i + 1, total=len(few_shot.specs), note=note))
        trained.append(from_module(training.module.cpu().eval(), f"{name}, trained on the task"))
    return trained


def _kept_per_kind(problem: InitializationProblem) -> dict[Kind, int]:
    defaults = problem.options.default_count
    return {
        Kind.DEFAULT: defaults,
        Kind.DEFAULT_FITTED: defaults,
        Kind.PROMPT: 1,
        Kind.MEAN_OF_PROMPTS: 1,
        Kind.SANE: problem.options.keep,
    }


def _baseline_specs(problem: InitializationProblem) -> list[CandidateSpec]:
    """Return the baselines of SANE candidates, apart from defaults with a fitted classifier."""
    defaults = problem.options.default_count
    prompts = len(problem.transfer.aligned) if defaults else 0
    return [
        *(CandidateSpec(Kind.DEFAULT, number) for number in range(defaults)),
        *(CandidateSpec(Kind.PROMPT, number) for number in range(prompts)),
        *([CandidateSpec(Kind.MEAN_OF_PROMPTS)] if prompts > 1 else []),
    ]


def _tries_fitted_default(problem: InitializationProblem, number: int) -> bool:
    """Return whether to try a fitted default: one for each draw if the default is drawn anew each time."""
    defaults = problem.options.default_count
    is_new = number < defaults or (problem.is_fresh and defaults > 0)
    return problem.fits_classifier and is_new


def _best_prompts(scores: Mapping[int, float]) -> tuple[int, ...]:
    return tuple(sorted(sorted(scores, key=lambda number: -scores[number])[:_MAX_PROMPTS]))


def _variant_specs(board: Leaderboard) -> list[CandidateSpec]:
    """Return the best specs at the default's scale, and the best SANE candidate's first layers alone."""
    kinds = (Kind.SANE, Kind.PROMPT, Kind.MEAN_OF_PROMPTS)
    specs = [replace(c.spec, scale="default") for kind in kinds for c in board.best(kind)]
    early = [replace(spec, layers=_EARLY_LAYERS_FRACTION) for spec in specs[:1]]
    return [*specs[:1], *early, *specs[1:]]


def _report(report: Report, candidate: Candidate, done: int, total: int) -> None:
    note = f"{candidate.score.before:.3f}"
    report(Progress(job="draw and score", done=done, total=total, note=note))
