"""Initialise a network for a new task from prompt networks, or say that another start is better.

Candidates are sampled near the prompts, decoded, conditioned, and scored on held-out target images
together with default initialisations, defaults with a fitted classifier, every prompt as it is, and their
mean. Test images are not used. The method: docs/explanation/sane.md, section 6; paper section 4.3.

    prepare              target, task, prompts, SANE -> InitializationProblem
    search               InitializationProblem -> SearchResult: scored candidates, and the trace of the draws
    race                 candidates -> RaceResult: trained rung by rung, best first
    forecast_after_race  the race -> BenefitForecast: do generated weights help?
    build_provenance     all of these -> what a file says of its origin
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sane_plugins.autoencoder import SANE
from sane_plugins.display import ShortRepr, html_table
from sane_plugins.errors import SourceError
from sane_plugins.generation import SamplerError
from sane_plugins.initialize.benefit import BenefitForecast, forecast_after_race
from sane_plugins.initialize.budget import Budget, Completion
from sane_plugins.initialize.candidates import (
    Candidate,
    CandidateBuilder,
    CandidateScore,
    CandidateSpec,
    Family,
    Kind,
    Origin,
)
from sane_plugins.initialize.notes import generation_notes, result_notes, sampler_notes
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.problem import InitializationProblem, prepare
from sane_plugins.initialize.provenance import Provenance, build_provenance
from sane_plugins.initialize.search import (
    FewShotPrompts,
    SearchResult,
    SearchTrace,
    draw_latents,
    search,
    train_few_shot,
)
from sane_plugins.initialize.successive_halving import race
from sane_plugins.initialize.training import set_memory_format
from sane_plugins.progress import Report, silent
from sane_plugins.runtime import threads_for
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph, copy_module


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Initialization(ShortRepr):
    """The chosen initial weights, as a graph and in a module, and how they were chosen.

    `rows` come best first; those with `after` None were not trained to the end. `origins` says of each
    tensor's name where its values come from. `notes` say what a reader of the table should know.
    `interrupted`: the user stopped it, and this was the best so far. `forecast` is None where there was
    nothing to compare. `first_task` holds what a pruned network needs to have its first task again.
    `sampler_error` says why no more candidates were drawn, where the sampler failed.
    """

    graph: WeightGraph
    module: nn.Module
    chosen: Family
    rows: tuple[CandidateScore, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    origins: Mapping[str, Origin]
    interrupted: bool = False
    first_task: Mapping[str, torch.Tensor] | None = None
    forecast: BenefitForecast | None = None
    sampler_error: SamplerError | None = None

    def _repr_html_(self) -> str:
        """Return the scores as a table for notebooks: a row per initialisation."""
        columns = ("initialisation", "before", "epochs", "after these", "")
        rows = (
            (x.name, f"{x.before:.3f}", f"{x.epochs:.2f}", f"{x.last:.3f}", "chosen" * x.chosen)
            for x in self.rows
        )
        return html_table(repr(self), columns, rows)


def initialize(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions | None = None,
    report: Report = silent,
) -> Initialization:
    """Return initial weights for `target` on `task`: a SANE candidate, or what does better.

    `target` is a function that builds the network anew, so that every default initialisation is a fresh
    draw; of a module, which is not changed, only the weights it has count as its default. Raises
    `TaskError` where images or classes do not fit the network, `UsageError` without prompts, or where
    no tensor's name matches.
    """
    options = options or InitializeOptions()
    budget, few_shot = Budget(options.budget), None
    problem = prepare(target, task, prompts, sane, options, report)
    with threads_for(problem.flops):
        search_result, ranked, completion = _search_and_race(problem, budget, report)
        if options.few_shot and not completion.interrupted:
            specs = tuple(c.spec for c in ranked[: options.few_shot])
            few_shot = FewShotPrompts(specs, search_result.trace)
            problem = problem.with_prompts(train_few_shot(problem, few_shot, report), report)
            budget, first_completion = Budget(options.budget), completion
            search_result, ranked, completion = _search_and_race(problem, budget, report)
            completion |= first_completion
        # It only informs: the race decides.
        forecast, forecast_completion = forecast_after_race(
            problem, ranked, budget.after(completion)
        )
        completion |= forecast_completion
        best = ranked[0]
        rows = _score_rows(ranked, search_result)
        provenance = build_provenance(
            problem, task, prompts, best.spec, search_result.trace, few_shot, rows
        )
    return Initialization(
        graph=_finite_graph(problem, best.module, best.origins),
        module=best.module.cpu().eval(),
        chosen=best.spec.kind.family,
        rows=rows,
        notes=(
            *result_notes(problem, task, best, forecast, completion),
            *sampler_notes(search_result.sampler_error),
        ),
        provenance=provenance,
        origins=best.origins,
        interrupted=completion.interrupted,
        first_task=problem.pruned.first_task_tensors() if problem.pruned else None,
        forecast=forecast,
        sampler_error=search_result.sampler_error,
    )


def remake(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
    provenance: Provenance,
) -> WeightGraph:
    """Reproduce the weights of a provenance: only the chosen candidate, without any search."""
    problem = prepare(target, task, prompts, sane, options)
    spec, trace, few_shot = provenance.recipe, provenance.course, provenance.few_shot
    with threads_for(problem.flops):
        if few_shot is not None:
            problem = problem.with_prompts(train_few_shot(problem, few_shot, silent))
        built = CandidateBuilder(problem).build(spec, draw_latents(problem, trace, spec))
        return _graph(problem, built.module)


def generate(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions | None = None,
    report: Report = silent,
) -> Initialization:
    """Draw and decode one network near the prompts; nothing is compared, so it may be worse than the default.

    Norms are conditioned and the classifier is fitted on the task's images, as `initialize` does.
    """
    options = replace(options or InitializeOptions(), candidates=1, keep=1)
    problem = prepare(target, task, prompts, sane, options, report)
    spec, trace = CandidateSpec(Kind.SANE), SearchTrace(near=(0,))
    with threads_for(problem.flops):
        built = CandidateBuilder(problem).build(spec, draw_latents(problem, trace, spec))
        provenance = build_provenance(problem, task, prompts, spec, trace)
    return Initialization(
        graph=_finite_graph(problem, built.module, built.origins),
        module=built.module.cpu().eval(),
        chosen=spec.kind.family,
        rows=(),
        notes=generation_notes(problem),
        provenance=provenance,
        origins=built.origins,
    )


def _search_and_race(
    problem: InitializationProblem, budget: Budget, report: Report
) -> tuple[SearchResult, tuple[Candidate, ...], Completion]:
    """Return the search's result, the race's candidates best first, and how both ended."""
    search_result = search(problem, budget, report)
    race_result = race(
        problem, search_result.board.kept, budget.after(search_result.completion), report
    )
    return search_result, race_result.candidates, search_result.completion | race_result.completion


def _score_rows(
    ranked: Sequence[Candidate], search_result: SearchResult
) -> tuple[CandidateScore, ...]:
    """Return all scores, those of the race first, the best of these marked as chosen."""
    rows = [replace(c.score, chosen=c is ranked[0]) for c in ranked]
    return (*rows, *sorted(search_result.board.dropped, key=lambda score: -score.before))


def _graph(problem: InitializationProblem, module: nn.Module) -> WeightGraph:
    set_memory_format(module, torch.contiguous_format)
    return problem.read(copy_module(module).cpu())


def _finite_graph(
    problem: InitializationProblem, module: nn.Module, origins: Mapping[str, Origin]
) -> WeightGraph:
    """Return the graph of a network; raise `SourceError` where weights that we made are not finite."""
    graph = _graph(problem, module)
    for key, origin in origins.items():
        tensor = graph.tensors.get(key)
        if origin is not Origin.DEFAULT and tensor is not None and not tensor.isfinite().all():
            raise SourceError(
                f"the initial weights, '{key}'",
                "some values are not finite",
                "initial weights are numbers",
                "give prompts and images of moderate size, or the shipped SANE",
            )
    return graph
