"""The search for candidates: make each, rank it on training images without training, keep the best.

Bootstrapping draws near the best latents of all rounds before; few-shot prompts are the best candidates,
trained on the new task for a while. The method: docs/explanation/sane.md, sections 6.1, 6.5 and 6.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from sane_plugins.errors import SaneError
from sane_plugins.generation import SamplerError
from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import Candidate, CandidateBuilder
from sane_plugins.initialize.draws import DrawId, SearchTrace, draw_latents, draw_round
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.leaderboard import Leaderboard, by_loss
from sane_plugins.initialize.plan import Plan
from sane_plugins.initialize.problem import InitializationProblem, needs_own_weights
from sane_plugins.initialize.ranking import leads, rank_candidate
from sane_plugins.initialize.transplants import NothingWrittenError
from sane_plugins.progress import Progress, Report

_MAX_PROMPTS = 6  # to draw near
_EARLY_LAYERS_FRACTION = 0.5
_SEARCH_PART = 0.8  # of the longest time, after which no more is made: the rest is for training


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The result of a search: candidates to train, the trace that reproduces them, and how it ended.

    `sampler_error` says why there are no SANE candidates, or no more of them; `notes` say which transfers
    could not be made.
    """

    board: Leaderboard
    trace: SearchTrace
    completion: Completion = field(default_factory=Completion)
    sampler_error: SamplerError | None = None
    notes: tuple[str, ...] = ()


def search(
    problem: InitializationProblem, plan: Plan, budget: Budget, report: Report
) -> SearchResult:
    """Make and rank candidates, then the best at the default's scale too.

    Defaults come first, then transfers, prompts as they are, and SANE candidates drawn near the best of
    these. Transfers are kept where they lead the best default; and so are the others where there are
    transfers, since prompts are of other architectures then. Ctrl-C ends the search; before the first
    candidate, it is raised. A sampler that fails ends the drawing; `SamplerError` is raised where that leaves
    nothing to compare.
    """
    course = _Search(problem, plan, report)
    with Stage(budget.end(_SEARCH_PART), has_result=False) as stage:
        course.stage = stage
        course.rank_defaults()
        course.rank_transfers()
        course.keep_leading(Kind.TRANSFER)
        if plan.draws:
            course.rank_prompts()
            course.rank_draws()
            if plan.networks:
                course.keep_leading(Kind.PROMPT, Kind.MEAN_OF_PROMPTS, Kind.SANE)
            course.rank_variants()
    result = course.result()
    if result.sampler_error is not None and not result.board.kept:
        raise result.sampler_error
    return replace(result, completion=stage.completion | result.completion)


@dataclass(eq=False)
class _Search:
    """A search under way; what it has by now is kept where it ends early."""

    problem: InitializationProblem
    plan: Plan
    report: Report
    stage: Stage = field(default_factory=lambda: Stage(float("inf")))
    done: int = 0
    skipped: Completion = field(default_factory=Completion)
    sampler_error: SamplerError | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        near = tuple(range(len(self.problem.prompts)))[:_MAX_PROMPTS]
        self.board, self.trace = Leaderboard(self.plan), SearchTrace(near)
        self.builder = CandidateBuilder(self.problem, self.report)

    def result(self) -> SearchResult:
        return SearchResult(self.board, self.trace, self.skipped, self.sampler_error, self.notes)

    def rank_defaults(self) -> None:
        """Rank defaults as they are, one with a fitted classifier, and what methods draw without a prompt."""
        for number in range(self.plan.defaults):
            self._try(CandidateSpec(Kind.DEFAULT, number))
        self._try_fitted_default(0)
        for name in self.problem.promptless_names if self.plan.defaults else ():
            self._try(CandidateSpec(Kind.STRUCTURED, method=name))

    def rank_transfers(self) -> None:
        """Try the first method on every prompt, and other methods on the best prompts of these.

        What fits a pruned network is tried on the prompt that it was pruned from.
        """
        names = self.problem.transfer_names
        specs = [CandidateSpec(Kind.TRANSFER, i, method=names[0]) for i in range(self.plan.scouted)]
        scouts = [found for spec in specs if (found := self._try(spec)) is not None]
        lenders = [x.spec.number for x in sorted(scouts, key=by_loss)[: self.plan.lenders]] or [0]
        others = names[1 : 1 + self.plan.methods] if self.plan.networks else ()
        own = [name for name in others if needs_own_weights(self.problem.methods[name])]
        for name in own:
            self._try(CandidateSpec(Kind.TRANSFER, self.problem.dense or 0, method=name))
        for lender in lenders:  # one after the other: what its methods begin with is done once
            for name in others:
                if name not in own:
                    self._try(CandidateSpec(Kind.TRANSFER, lender, method=name))

    def keep_leading(self, *kinds: Kind) -> None:
        """Of some kinds, keep what beats the best default by two standard errors."""
        rivals = (Kind.DEFAULT, Kind.DEFAULT_FITTED, Kind.STRUCTURED)
        defaults = [c for c in self.board.best(*rivals) if c.losses is not None]
        if defaults:
            behind = [c for c in self.board.best(*kinds) if not leads(c, defaults[0])]
            self.board = self.board.without(behind)

    def rank_prompts(self) -> None:
        """Rank prompts as they are, and their mean; the best are drawn near."""
        losses: dict[int, float] = {}
        transfer = self.problem.sane_transfer
        aligned = len(transfer.aligned)
        count = min(aligned, max(1, aligned >> self.plan.rung)) if self.plan.prompts else 0
        for number in range(count):
            candidate = self._try(CandidateSpec(Kind.PROMPT, number))
            if candidate is not None:
                losses[number] = by_loss(candidate)
        if aligned > 1 and count:
            self._try(CandidateSpec(Kind.MEAN_OF_PROMPTS))
        near = tuple(sorted(sorted(losses, key=lambda n: losses[n])[:_MAX_PROMPTS]))
        self.trace = SearchTrace(near or tuple(range(len(transfer.prompts)))[:_MAX_PROMPTS])

    def rank_draws(self) -> None:
        """In each round, rank SANE candidates and as many defaults with a fitted classifier."""
        options, draws = self.problem.options, self.plan.draws
        for round_ in range(options.search_rounds):
            if round_:
                best = self.board.best(Kind.SANE)
                self.trace = self.trace.with_round(
                    [DrawId(c.spec.round, c.spec.number) for c in best]
                )
            try:
                drawn: Sequence[torch.Tensor | None] = [
                    *draw_round(self.problem, self.trace, round_)
                ]
            except SamplerError as error:
                drawn, self.sampler_error = [None] * draws, error
            for i, latents in enumerate(drawn):
                if latents is not None:
                    self._try(CandidateSpec(Kind.SANE, i, round_), latents)
                if number := round_ * draws + i:
                    self._try_fitted_default(number)
            if self.sampler_error is not None:
                break

    def rank_variants(self) -> None:
        """Rank the best at the default's scale too, and of a SANE candidate the first layers alone."""
        # The survivors of a pruned network have their scale.
        for spec in self._variant_specs() if self.problem.pruned is None else ():
            self.stage.check()
            try:
                latents = draw_latents(self.problem, self.trace, spec)
            except SamplerError as error:
                self.sampler_error = error
                continue
            self.board = self.board.with_variant(self._ranked(spec, latents))

    def _variant_specs(self) -> list[CandidateSpec]:
        kinds = (Kind.SANE, Kind.PROMPT, Kind.MEAN_OF_PROMPTS)[: 2 if self.plan.rung > 1 else 3]
        best = [c.spec for kind in kinds for c in self.board.best(kind)]
        self.board = self.board.limited(Kind.SANE, 1)
        specs = [replace(spec, scale="default") for spec in best]
        early = [replace(spec, layers=_EARLY_LAYERS_FRACTION) for spec in specs[:1]]
        return [*specs[:1], *(early if self.plan.rung < 2 else []), *specs[1:]]

    def _try_fitted_default(self, number: int) -> None:
        """Rank a fitted default: one for each draw if the default is drawn anew each time."""
        defaults = self.problem.options.default_count
        is_new = number < defaults or (self.problem.is_fresh and defaults > 0)
        if self.problem.fits_classifier and is_new:
            self._try(CandidateSpec(Kind.DEFAULT_FITTED, number))

    def _try(self, spec: CandidateSpec, latents: torch.Tensor | None = None) -> Candidate | None:
        """Rank a candidate; of each kind one is, however short the time."""
        if self.board.best(spec.kind) and self.stage.is_over:
            self.skipped = Completion(timed_out=True)
            return None
        try:
            candidate = self._ranked(spec, latents)
        except NothingWrittenError:
            return None
        except SaneError as error:
            if not spec.kind.is_by_method:
                raise
            name = spec.name(self.problem)
            self.notes += (f"{name} could not be made ({error.place}: {error.found})",)
            return None
        self.board = self.board.with_candidate(candidate)
        self.done, self.stage.has_result = self.done + 1, True
        share = candidate.score.loo_accuracy
        note = candidate.score.name + ("" if share is None else f" {share:.3f}")
        total = max(self.done, self._expected())
        self.report(Progress(job="make and rank", done=self.done, total=total, note=note))
        return candidate

    def _expected(self) -> int:
        plan, rounds = self.plan, self.problem.options.search_rounds
        methods = plan.methods * plan.lenders + plan.scouted
        fitted = rounds * plan.draws or 1
        return plan.defaults + methods + plan.prompts + rounds * plan.draws + fitted

    def _ranked(self, spec: CandidateSpec, latents: torch.Tensor | None) -> Candidate:
        return rank_candidate(self.builder, spec, self.plan.ranking_images, latents)
