"""Few-shot prompts: the best candidates, trained on the new task for a while.

The method: docs/explanation/sane.md, section 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.options import Candidate, CandidateSpec, InitializeOptions
from sane_plugins.initialize.search import SearchTrace, latents_of
from sane_plugins.initialize.successive_halving import trial
from sane_plugins.progress import Progress, Report
from sane_plugins.weights import WeightGraph, from_module


@dataclass(frozen=True)
class FewShotPrompts:
    """Which candidates were trained to draw near, and the course of the search that they are from."""

    recipes: tuple[CandidateSpec, ...]
    course: SearchTrace


def first_shots(raced: Sequence[Candidate], options: InitializeOptions) -> list[Candidate]:
    """Return the best candidates, whatever they came from."""
    return list(raced[: options.few_shot])


def train_shots(
    bench: CandidateBuilder, shots: FewShotPrompts, report: Report
) -> list[WeightGraph]:
    """Train them on the task's training images; the same bench gives the same networks."""
    epoch = ceil(len(bench.task.y_train) / bench.options.train.batch)
    found = []
    for i, recipe in enumerate(shots.recipes):
        candidate = bench.build(recipe, latents_of(bench, shots.course, recipe))
        training = trial(bench, candidate)
        training.advance(epoch * bench.options.few_shot_epochs, lambda: None)
        score = training.score()
        note = f"{candidate.row.name} {score:.3f}"
        report(Progress(job="train prompts", done=i + 1, total=len(shots.recipes), note=note))
        name = f"{candidate.row.name}, trained on the task"
        found.append(from_module(training.module.cpu().eval(), name))
    return found
