"""Initialise a network for a new task from prompt networks, or say that the default is better.

Candidates are sampled near the prompts, decoded, conditioned, and scored on held-out target images
together with the default initialisation (spec section 6; paper section 4.3). Test images are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import nn

from sane_plugins.latent.model import SANE
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.tasks.candidates import Bench, Candidate, affordable, fitting_threads
from sane_plugins.tasks.candidates import InitialiseOptions as InitialiseOptions
from sane_plugins.tasks.candidates import Row as Row
from sane_plugins.tasks.classifier import find_classifier
from sane_plugins.tasks.task import Task
from sane_plugins.tasks.train import arrange, require_fit, seeded
from sane_plugins.tasks.transfer import Transfer, plan
from sane_plugins.weights.graph import WeightGraph
from sane_plugins.weights.modules import from_module

_PLAINEST = ("default", "default, classifier fitted", "sane")
_MOST_TOKENS = 300_000  # decoding this many takes about a minute on two cores


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """The chosen initial weights, as a graph and in a module, and how they were chosen.

    `rows` come best first; those with `after` None were drawn but not trained. `notes` say what a reader of
    the table should know.
    """

    graph: WeightGraph
    module: nn.Module
    chosen: Literal["sane", "default"]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, object]


def initialise(
    target: nn.Module | Callable[[], nn.Module], task: Task, prompts: Sequence[WeightGraph], sane: SANE,
    options: InitialiseOptions | None = None, report: Report = silent,
) -> Initialisation:  # fmt: skip
    """Return initial weights for `target` on `task`: a SANE candidate, or the default if that does better.

    `target` is a function that builds the network anew, so that every default initialisation is a fresh
    draw; of a module, which is not changed, only the weights it has count as its default. Raises
    `TaskError` where images or classes do not fit the network, `UsageError` without prompts.
    """
    options = options or InitialiseOptions()
    make, fresh = _maker(target)
    rng = torch.Generator().manual_seed(options.seed)
    with seeded(rng):
        first = make()
    require_fit(first, task)
    data = affordable(first, task, options, rng)
    graph, keys = _described(first, task)
    transfer = plan(prompts, graph, keys, sane, rng)
    bench = Bench(make=make, task=data, classifier=keys, options=options, rng=rng)
    with fitting_threads(first, task):
        kept, others = _best_drawn(bench, transfer, report)
        draws = _count(options, transfer) if fresh else 0
        defaults, rest = _defaults(bench, draws, report)
        tried = _tried(bench, [*kept, *defaults], report)
        others += rest
    notes = _notes(data, task, bench, transfer, fresh)
    return _choose(tried, others, tuple(notes), _provenance(options, prompts, transfer, task))


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


def _best_drawn(
    bench: Bench, transfer: Transfer, report: Report
) -> tuple[list[Candidate], list[Row]]:
    """Draw candidates and score them before training; return the best, and the rows of the others."""
    options = bench.options
    count = _count(options, transfer)
    best = _Best(options.keep)
    for i, latents in enumerate(options.sampler(transfer.prompts, count, bench.rng)):
        new = best.offer(bench.draw(transfer, latents, f"SANE candidate {i + 1}"))
        note = f"{new.row.before:.3f}"
        report(Progress(job="draw and score", done=i + 1, total=count, note=note))
    return best.kept, best.others


def _count(options: InitialiseOptions, transfer: Transfer) -> int:
    """Return how many candidates are drawn: fewer than asked for where decoding one takes long."""
    afford = _MOST_TOKENS // transfer.prompts.shape[1]
    return min(options.candidates, max(options.keep, afford))


class _Best:
    """The candidates that score best before training, and the rows of those that do not."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: list[Candidate] = []
        self.others: list[Row] = []

    def offer(self, new: Candidate) -> Candidate:
        """Keep a candidate if it is among the best; return it either way."""
        ranked = sorted([*self.kept, new], key=lambda c: -c.row.before)
        self.kept = ranked[: self.most]
        self.others += [c.row for c in ranked[self.most :]]
        return new


def _defaults(bench: Bench, draws: int, report: Report) -> tuple[list[Candidate], list[Row]]:
    """Return default initialisations, and as many with a fitted classifier, the best of `draws`.

    SANE candidates are the best of many draws too: without that, the lead would be the selection's.
    """
    options = bench.options
    count = options.keep if options.defaults is None else options.defaults
    plain = [bench.default(f"default {i + 1}") for i in range(count)]
    best = _Best(count)
    total = max(count, draws) if bench.fits and count else 0
    for i in range(total):
        best.offer(bench.fitted_default(f"default {i + 1}"))
        report(Progress(job="draw defaults", done=i + 1, total=total))
    return [*plain, *best.kept], best.others


def _tried(bench: Bench, candidates: Sequence[Candidate], report: Report) -> list[Candidate]:
    """Train candidates and defaults for one epoch each."""
    done = []
    for candidate in candidates:
        done.append(bench.try_out(candidate))
        note = f"{candidate.row.name} {done[-1].row.after:.3f}"
        report(Progress(job="train one epoch", done=len(done), total=len(candidates), note=note))
    return done


def _choose(
    tried: Sequence[Candidate], others: Sequence[Row], notes: tuple[str, ...],
    provenance: Mapping[str, object],
) -> Initialisation:  # fmt: skip
    """Choose by accuracy after one epoch; a tie goes to the plainer initialisation."""
    ranked = sorted(tried, key=lambda c: (-(c.row.after or 0.0), _PLAINEST.index(c.row.kind)))
    best = ranked[0]
    arrange(best.module, torch.contiguous_format)
    rows = [replace(c.row, chosen=c is best) for c in ranked]
    rows += sorted(others, key=lambda row: -row.before)
    return Initialisation(
        graph=from_module(deepcopy(best.module)), module=best.module.eval(),
        chosen="sane" if best.row.kind == "sane" else "default",
        rows=tuple(rows), notes=notes, provenance=provenance,
    )  # fmt: skip


def _notes(data: Task, task: Task, bench: Bench, transfer: Transfer, fresh: bool) -> Iterator[str]:
    yield (
        f"scored on {len(data.y_test)} held-out training images, after training on"
        f" {len(data.y_train)} of {len(task.y_train)}; test images were not used"
    )
    yield from transfer.notes
    if (drawn := _count(bench.options, transfer)) < bench.options.candidates:
        yield f"{drawn} candidates were drawn, not {bench.options.candidates}: the network is large"
    if bench.options.classifier == "fit" and not bench.classifier:
        yield "the network does not end in a linear layer, so its classifier was not fitted"
    if not fresh:
        yield "the default initialisation is the network as given, trained in another order each time"


def _provenance(
    options: InitialiseOptions, prompts: Sequence[WeightGraph], transfer: Transfer, task: Task
) -> dict[str, object]:
    chosen = {**asdict(options), "sampler": repr(options.sampler)}
    sources = [prompt.source for prompt in prompts]
    return {
        "task": task.name, "prompts": sources, "prompts_fit": transfer.fits, "options": chosen
    }  # fmt: skip
