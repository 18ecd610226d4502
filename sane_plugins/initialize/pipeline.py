"""Initialise a network for a new task from prompt networks, or say that another start is better.

Candidates are sampled near the prompts and decoded, or transferred from prompts, and ranked on training
images together with default initialisations, defaults with a fitted classifier, every prompt as it is, and
their mean. The best are trained, and compared on held-out training images. Test images are not
used. The method: docs/explanation/sane.md, section 6; paper section 4.3.

    set_up               target, task, prompts, SANE -> InitializationProblem
    make_plan            how much of it fits into the budget, measured once -> Plan
    search               problem, plan -> SearchResult: ranked candidates, and the trace of the draws
    race                 candidates -> RaceResult: finalists trained rung by rung, and the choice
    forecast_after_race  the race -> BenefitForecast of a family: does it help?
    build_provenance     all of these -> what a file says of its origin
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil

from torch import nn

from sane_plugins.autoencoder import SANE
from sane_plugins.errors import SourceError, TaskError
from sane_plugins.grafting import PromptNetwork, TransferMethod
from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import BuiltNetwork, Candidate, CandidateBuilder
from sane_plugins.initialize.choice import choose
from sane_plugins.initialize.draws import (
    FewShotPrompts,
    draw_latents,
    train_few_shot,
)
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.outcome.benefit import forecast_after_race
from sane_plugins.initialize.outcome.notes import (
    result_notes,
    sampler_notes,
)
from sane_plugins.initialize.outcome.provenance import Provenance, build_provenance
from sane_plugins.initialize.outcome.result import (
    Initialization,
    finite_graph,
    network_graph,
    score_rows,
)
from sane_plugins.initialize.plan import Plan, describe, make_plan
from sane_plugins.initialize.problem import (
    InitializationProblem,
    set_up,
)
from sane_plugins.initialize.search import SearchResult, search
from sane_plugins.initialize.successive_halving import race, with_start
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.runtime import threads_for
from sane_plugins.tasks import Task, accuracy
from sane_plugins.weights import WeightGraph


def initialize(
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
    """Return initial weights for `target` on `task`: the best candidate's, or the default's.

    `target` is a function that builds the network anew, so that every default initialisation is a fresh
    draw; of a module, which is not changed, only the weights it has count as its default. SANE candidates
    are drawn near `prompts`; `methods` transfer `prompt_networks`. Raises `TaskError` where images or
    classes do not fit the network, `UsageError` without prompts, or where no tensor's name matches.
    """
    options = options or InitializeOptions()
    budget, few_shot = Budget(options.budget), None
    first = replace(options, rung=options.rung or 0)
    problem = set_up(target, task, prompts, sane, first, prompt_networks, methods)
    with threads_for(problem.flops):
        plan, problem = planned(problem, options, report)
        result, ranked, completion = _search_and_race(problem, plan, budget, report)
        if options.few_shot and not completion.interrupted and problem.transfer is not None:
            specs = tuple(c.spec for c in ranked[: options.few_shot])
            few_shot = FewShotPrompts(specs, result.trace)
            problem = problem.with_prompts(train_few_shot(problem, few_shot, report), report)
            budget, first_completion = Budget(options.budget), completion
            result, ranked, completion = _search_and_race(problem, plan, budget, report)
            completion |= first_completion
        forecasts, forecast_completion = forecast_after_race(
            problem, plan, ranked, budget.after(completion), report
        )
        completion |= forecast_completion
        # Between those that the race calls about equal, the forecast decides whether a default is taken.
        expected = {family for family, x in forecasts.items() if x.helps_clearly}
        ranked = tuple(choose(ranked, problem.chance, expected))
        best, ranked = finished(problem, ranked)
        problem, best, refined_completion = refined(problem, best, budget.after(completion), report)
        completion |= refined_completion
        rows = score_rows(ranked, result)
        provenance = build_provenance(
            problem, task, prompts, best.spec, result.trace, few_shot, rows, plan
        )
    return Initialization(
        graph=finite_graph(problem, best.module, best.origins),
        module=best.module.cpu().eval(),
        chosen=best.spec.kind.family,
        rows=rows,
        notes=(
            *result_notes(problem, options, task, best, plan, forecasts, completion, rows),
            *result.notes,
            *sampler_notes(result.sampler_error),
        ),
        provenance=provenance,
        origins=best.origins,
        interrupted=completion.interrupted,
        first_task=problem.pruned.first_task_tensors() if problem.pruned else None,
        forecasts=forecasts,
        sampler_error=result.sampler_error,
    )


def remake(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
    provenance: Provenance,
    *,
    prompt_networks: Sequence[PromptNetwork] = (),
    methods: Mapping[str, TransferMethod] | None = None,
) -> WeightGraph:
    """Reproduce the weights of a provenance: only the chosen candidate, without any search."""
    problem = set_up(target, task, prompts, sane, options, prompt_networks, methods)
    spec, trace, few_shot = provenance.recipe, provenance.course, provenance.few_shot
    specs = (spec, *(few_shot.specs if few_shot is not None else ()))
    _require_transferable(problem, specs)
    with threads_for(problem.flops):
        if any(x.kind.needs_encoded_prompts for x in specs):
            problem = problem.encoded()
        if few_shot is not None:
            problem = problem.with_prompts(train_few_shot(problem, few_shot, silent))
        builder = CandidateBuilder(problem)
        built = builder.build(spec, draw_latents(problem, trace, spec))
        if options.refine:
            built = builder.refined(built)
        return network_graph(problem, built.module)


def planned(
    problem: InitializationProblem,
    options: InitializeOptions,
    report: Report,
    trains: bool = True,
) -> tuple[Plan, InitializationProblem]:
    """Plan the work and say so; return the plan, and the problem, its prompts encoded if they are used."""
    problem = replace(problem, options=options)
    plan = make_plan(problem, options.budget, trains)
    report(Progress(job=describe(plan, problem), done=0, total=0))
    taken = replace(
        options,
        rung=plan.rung,
        candidates=min(options.candidates, max(1, plan.draws)),
        norm_batches=min(options.norm_batches, ceil(plan.last_images / options.norm_batch)),
        fit_images=min(options.fit_images, plan.last_images),
    )
    problem = replace(problem, options=taken)
    return plan, problem.encoded(report) if plan.draws else problem


def _search_and_race(
    problem: InitializationProblem, plan: Plan, budget: Budget, report: Report
) -> tuple[SearchResult, tuple[Candidate, ...], Completion]:
    """Return the search's result, the race's candidates, the chosen one first, and how both ended."""
    result = search(problem, plan, budget, report)
    raced = race(problem, plan, result.board.kept, budget.after(result.completion), report)
    return result, raced.candidates, result.completion | raced.completion


def finished(
    problem: InitializationProblem, ranked: Sequence[Candidate]
) -> tuple[BuiltNetwork, tuple[Candidate, ...]]:
    """Measure norms and fit the classifier of the chosen one on all images that the options allow.

    Its accuracy without training is then measured again.
    """
    chosen = ranked[0]
    built = CandidateBuilder(problem).finish(chosen.built)
    score = chosen.score
    if score.before is not None:
        score = with_start(replace(chosen, built=built), problem.task).score
    return built, (replace(chosen, built=built, score=score), *ranked[1:])


def refined(
    problem: InitializationProblem, built: BuiltNetwork, budget: Budget, report: Report
) -> tuple[InitializationProblem, BuiltNetwork, Completion]:
    """Take the steps on latents that the options ask for, on a finished network, and note what they did.

    They are undone where its accuracy on held-out images falls; the options of the problem then ask for none.
    """
    if not problem.options.refine:
        return problem, built, Completion()
    stage, found = Stage(budget.end()), None
    note = "the steps on its latents were not finished, and are undone"

    def checked(event: Progress) -> None:
        stage.check()
        report(event)

    if built.spec.kind is Kind.DEFAULT:
        note = "a default initialisation is not refined"
    else:
        with stage:
            found, note = _try_to_refine(problem, built, checked)
    if found is None:
        problem = replace(problem, options=replace(problem.options, refine=0))
    network = replace(found or built, notes=(*built.notes, note))
    return problem, network, stage.completion


def _try_to_refine(
    problem: InitializationProblem, built: BuiltNetwork, report: Report
) -> tuple[BuiltNetwork | None, str]:
    """Return the refined network, None if it is worse on held-out images, and a note."""
    task = problem.task
    try:
        found = CandidateBuilder(problem).refined(built, report)
    except TaskError as error:  # it diverged
        return None, f"the steps on its latents are undone: {error.found}"
    steps = f"{problem.options.refine} steps on its latents"
    if not len(task.y_test):
        return found, f"{steps} were taken, and no image is held out to tell what they are worth"
    before, after = (100 * accuracy(x.module, task.x_test, task.y_test) for x in (built, found))
    told = f"on held-out images from {before:.1f} to {after:.1f}"
    note = f"{steps} took its accuracy before training {told}"
    return (found, note) if after >= before else (None, f"{note}, and are undone")


def _require_transferable(problem: InitializationProblem, specs: Sequence[CandidateSpec]) -> None:
    """Raise `SourceError` for a transfer by a method, or from a prompt, that there is not."""
    for spec in specs:
        if not spec.kind.is_by_method:
            continue
        count = len(problem.prompt_networks)
        is_lent = spec.kind is not Kind.TRANSFER or spec.number < count
        if spec.method not in problem.methods or not is_lent:
            raise SourceError(
                "its recipe",
                f"it names the transfer '{spec.method[:100]}' of prompt {spec.number}",
                f"one of {', '.join(problem.methods) or 'no methods'} and of {count} runnable prompts",
                "install what offered the transfer, and name its prompts with what runs them",
            )
