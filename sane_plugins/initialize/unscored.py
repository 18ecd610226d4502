"""Initialise without training: the best transfer, or one network that is not compared.

The method: docs/explanation/sane.md, section 6.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sane_plugins.autoencoder import SANE
from sane_plugins.grafting import PromptNetwork, TransferMethod
from sane_plugins.initialize.budget import Budget
from sane_plugins.initialize.candidates import BuiltNetwork, Candidate, CandidateBuilder
from sane_plugins.initialize.choice import choose, with_chosen
from sane_plugins.initialize.draws import SearchTrace, draw_latents
from sane_plugins.initialize.kinds import CandidateScore, CandidateSpec, Family, Kind
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.outcome.notes import generation_notes, ranking_notes
from sane_plugins.initialize.outcome.provenance import build_provenance
from sane_plugins.initialize.outcome.result import Initialization, finite_graph, score_rows
from sane_plugins.initialize.pipeline import finished, planned, refined
from sane_plugins.initialize.plan import Plan
from sane_plugins.initialize.problem import InitializationProblem, set_up
from sane_plugins.initialize.search import search
from sane_plugins.initialize.successive_halving import asked_about, with_start
from sane_plugins.progress import Report, silent
from sane_plugins.runtime import threads_for
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph


def generate(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions | None = None,
    report: Report = silent,
    *,
    prompt_networks: Sequence[PromptNetwork] = (),
    methods: Mapping[str, TransferMethod] | None = None,
) -> Initialization:
    """Return one network, of which nothing is trained.

    Where prompts can be transferred it is the best transfer by leave-one-out losses on training images, or
    the default, where that is about equal by these or at least as accurate on held-out images. Else one
    network is drawn near the prompts and decoded; nothing is compared then, so it may be worse than the
    default. Norms are conditioned and the classifier is fitted on the task's images, as `initialize` does.
    """
    options = options or InitializeOptions()
    first = replace(options, rung=options.rung or 0)
    problem = set_up(target, task, prompts, sane, first, prompt_networks, methods)
    if problem.transfer_names:
        return _best_transfer(problem, task, prompts, options, report)
    options = replace(options, candidates=1, keep=1, rung=first.rung)
    problem = replace(problem, options=options).encoded(report)
    spec, trace = CandidateSpec(Kind.SANE), SearchTrace(near=(0,))
    with threads_for(problem.flops):
        built = CandidateBuilder(problem).build(spec, draw_latents(problem, trace, spec))
        problem, built, _ = refined(problem, built, Budget(options.budget), report)
        provenance = build_provenance(problem, task, prompts, spec, trace)
    notes = (*generation_notes(problem), *built.notes)
    return _unscored(problem, built, (), notes, provenance)


def _best_transfer(
    problem: InitializationProblem,
    task: Task,
    prompts: Sequence[WeightGraph],
    options: InitializeOptions,
    report: Report,
) -> Initialization:
    """Return the transfer of least leave-one-out loss, or the default; of those about equal, the plainest."""
    with threads_for(problem.flops):
        # Only its kind of weights is asked for: neither draws nor training.
        plan, problem = planned(replace(problem, prompts=()), options, report, trains=False)
        budget = Budget(options.budget)
        result = search(problem, plan, budget, report)
        best, ranked = finished(problem, _on_held_out_images(problem, plan, result.board.kept))
        problem, best, _ = refined(problem, best, budget.after(result.completion), report)
        rows = score_rows(ranked, result)
        provenance = build_provenance(
            problem, task, prompts, best.spec, result.trace, None, rows, plan
        )
    notes = (*best.notes, *result.notes, *ranking_notes(problem, plan, result.completion))
    return _unscored(problem, best, rows, notes, provenance)


def _on_held_out_images(
    problem: InitializationProblem, plan: Plan, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """Choose by leave-one-out losses; a default that held-out images find no worse is taken in its place.

    The layers of a transfer may have been fitted to the images that it is ranked by, so the best of each
    family is asked about others, and what is told of them is of these.
    """
    task, best_first = asked_about(problem, plan), choose(candidates)
    if not len(task.y_test):
        return best_first
    best_of: dict[Family, Candidate] = {}
    for candidate in best_first:
        best_of.setdefault(candidate.spec.kind.family, candidate)
    asked = [with_start(c, task) if c is best_of[c.spec.kind.family] else c for c in best_first]
    chosen = asked[0]
    default = next((c for c in asked if c.spec.kind.family is Family.DEFAULT), chosen)
    if (default.score.before or 0.0) >= (chosen.score.before or 0.0):
        chosen = default
    return with_chosen(asked, chosen)


def _unscored(
    problem: InitializationProblem,
    built: BuiltNetwork,
    rows: tuple[CandidateScore, ...],
    notes: tuple[str, ...],
    provenance: Mapping[str, Any],
) -> Initialization:
    return Initialization(
        graph=finite_graph(problem, built.module, built.origins),
        module=built.module.cpu().eval(),
        chosen=built.spec.kind.family,
        rows=rows,
        notes=notes,
        provenance=provenance,
        origins=built.origins,
    )
