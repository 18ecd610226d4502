"""Initialise a network for a new task from prompt networks, or say that another start is better.

Candidates are sampled near the prompts, decoded, conditioned, and scored on held-out target images
together with the default initialisation, the best prompt as it is, and the mean of the prompts. Test
images are not used. The method: docs/explanation/sane.md, section 6; paper section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sane_plugins.autoencoder import SANE
from sane_plugins.errors import UsageError
from sane_plugins.generation import find_classifier, like, plan_transfer
from sane_plugins.initialize.benefit import BenefitForecast, outlook, paired
from sane_plugins.initialize.budget import Budget
from sane_plugins.initialize.candidates import CandidateBuilder, affordable, fitting_threads
from sane_plugins.initialize.few_shot import FewShotPrompts, first_shots, train_shots
from sane_plugins.initialize.notes import remarks
from sane_plugins.initialize.options import Candidate, CandidateSpec
from sane_plugins.initialize.options import CandidateScore as CandidateScore
from sane_plugins.initialize.options import InitializeOptions as InitializeOptions
from sane_plugins.initialize.provenance import trace
from sane_plugins.initialize.pruned import drawn_anew, pruned
from sane_plugins.initialize.search import Leaderboard, SearchTrace, latents_of, search
from sane_plugins.initialize.successive_halving import family, race
from sane_plugins.initialize.training import arrange
from sane_plugins.progress import Report, silent
from sane_plugins.runtime import random_stream, seeded
from sane_plugins.tasks import Task, require_fit
from sane_plugins.weights import WeightGraph, from_module


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """The chosen initial weights, as a graph and in a module, and how they were chosen.

    `chosen` is `sane`, `default` or `prompt`. `rows` come best first; those with `after` None were
    not trained to the end. `origins` says of each tensor's name where its values come from. `notes` say what
    a reader of the table should know. `interrupted`: the user stopped it, and this was the best so far.
    """

    graph: WeightGraph
    module: nn.Module
    chosen: str
    rows: tuple[CandidateScore, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    origins: Mapping[str, str]
    interrupted: bool = False
    aside: Mapping[str, torch.Tensor] | None = None
    outlook: BenefitForecast | None = None


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
    clock = Budget(options.budget)
    bench, fresh = prepare(target, task, prompts, sane, options)
    shots = None
    with fitting_threads(bench.make(), task):
        pool, course, raced = _raced(bench, fresh, clock, report)
        if options.few_shot and not clock.interrupted:
            shots = FewShotPrompts(tuple(c.recipe for c in first_shots(raced, options)), course)
            bench = bench.near(train_shots(bench, shots, report), sane)
            pool, course, raced = _raced(bench, fresh, clock.restarted(), report)
        rows = [c.row for c in raced]
        expected = outlook(rows, len(bench.task.y_test), paired(bench, raced, clock))
        best = raced[0]  # the gate only tells
        rows = [replace(c.row, chosen=c is best) for c in raced]
        rows += sorted(pool.others, key=lambda row: -row.before)
        told = trace(bench, task, prompts, sane, best.recipe, course, rows, shots)
    return Initialization(
        graph=_graph(best.module),
        module=best.module.cpu().eval(),
        chosen=family(best.row.kind),
        rows=tuple(rows),
        notes=tuple(remarks(bench, task, fresh, clock, best, expected)),
        provenance=told,
        origins=best.origins,
        interrupted=clock.interrupted,
        outlook=expected,
        aside=bench.pruned.aside() if bench.pruned else None,
    )


def remake(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
    told: Mapping[str, Any],
) -> WeightGraph:
    """Make the weights of a provenance again: only the chosen candidate, without any search."""
    bench, _ = prepare(target, task, prompts, sane, options)
    recipe = CandidateSpec(**told["recipe"])
    with fitting_threads(bench.make(), task):
        if shots := told["few_shot"]:
            again = FewShotPrompts(
                tuple(CandidateSpec(**r) for r in shots["recipes"]), SearchTrace(**shots["course"])
            )
            bench = bench.near(train_shots(bench, again, silent), sane)
        latents = latents_of(bench, SearchTrace(**told["course"]), recipe)
        return _graph(bench.make_only(recipe, latents)[0])


def generate(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions | None = None,
) -> Initialization:
    """Draw and decode one network near the prompts; nothing is compared, so it may be worse than the default.

    Norms are conditioned and the classifier is fitted on the task's images, as `initialize` does.
    """
    options = replace(options or InitializeOptions(), candidates=1, keep=1)
    bench, _ = prepare(target, task, prompts, sane, options)
    recipe, course = CandidateSpec("sane"), SearchTrace([0])
    with fitting_threads(bench.make(), task):
        module, origins = bench.make_only(recipe, latents_of(bench, course, recipe))
    return Initialization(
        graph=_graph(module),
        module=module.cpu().eval(),
        chosen="sane",
        rows=(),
        notes=(
            *bench.transfer.notes,
            "nothing was scored: it may be worse than the default initialisation",
        ),
        provenance=trace(bench, task, prompts, sane, recipe, course, ()),
        origins=origins,
    )


def _raced(
    bench: CandidateBuilder, fresh: bool, clock: Budget, report: Report
) -> tuple[Leaderboard, SearchTrace, list[Candidate]]:
    pool, course = search(bench, fresh, clock, report)
    if not pool.kept:
        raise KeyboardInterrupt
    return pool, course, race(bench, pool.kept, clock, report)


def prepare(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
) -> tuple[CandidateBuilder, bool]:
    """Return all that candidates are built with, and whether each default is a fresh draw."""
    make, fresh = _maker(target)
    with seeded(random_stream(options.seed, "first")):
        first = make()
    require_fit(first, task)
    _require_match(first, options)
    data = affordable(first, task, options, random_stream(options.seed, "data")).to(options.device)
    graph, keys = _described(first, task)
    rng = random_stream(options.seed, "align")
    found = None
    if options.pruned:
        found, make, fresh = pruned(graph, keys), drawn_anew(first), True
        prompts = [like(prompt, graph, rng) for prompt in prompts]
    transfer = plan_transfer(prompts, graph, keys, sane, rng)
    bench = CandidateBuilder(
        make=make, task=data, classifier=keys, options=options, transfer=transfer, pruned=found
    )
    return bench, fresh


def _maker(target: nn.Module | Callable[[], nn.Module]) -> tuple[Callable[[], nn.Module], bool]:
    """Return what builds the network, and whether each call draws fresh weights."""
    if isinstance(target, nn.Module):
        return (lambda: deepcopy(target)), False
    return target, True


def _described(module: nn.Module, task: Task) -> tuple[WeightGraph, frozenset[str]]:
    """Return the network's graph and the keys of its classifier's tensors (none: not a linear layer)."""
    layer = find_classifier(module, task.x_train[:2])
    names = {name for name, part in module.named_modules() if part is layer}
    graph = from_module(module)
    return graph, frozenset(p.key for x in graph.layers if x.name in names for p in x.params)


def _require_match(module: nn.Module, options: InitializeOptions) -> None:
    if not any(map(options.selects, module.state_dict())):
        names = ", ".join([*module.state_dict()][:4])
        raise UsageError(
            "--include, --exclude",
            "no tensor is left to initialize",
            "some name must match",
            f"the network has {names}, and so on",
        )


def _graph(module: nn.Module) -> WeightGraph:
    arrange(module, torch.contiguous_format)
    return from_module(deepcopy(module).cpu())
