"""Draws of latents that can be repeated: near the prompts, and in later rounds near earlier draws.

The method: docs/explanation/sane.md, sections 6.1, 6.5 and 7.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from sane_plugins.errors import SourceError
from sane_plugins.generation import draw
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.kinds import CandidateSpec, Kind
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import start_training
from sane_plugins.progress import Progress, Report
from sane_plugins.runtime import random_stream
from sane_plugins.weights import WeightGraph, from_module

_MAX_DECODED_TOKENS = 300_000  # decoding this many takes about a minute on two cores


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


@dataclass(frozen=True)
class FewShotPrompts:
    """Which candidates were trained to draw near, and the trace of the search that they are from."""

    specs: tuple[CandidateSpec, ...]
    trace: SearchTrace

    def to_json(self) -> dict[str, Any]:
        """Return what a provenance holds."""
        return {"recipes": [asdict(spec) for spec in self.specs], "course": asdict(self.trace)}


def draws_per_round(problem: InitializationProblem) -> int:
    """Return how many candidates a round draws: fewer than asked for where decoding one takes long."""
    options, transfer = problem.options, problem.sane_transfer
    tokens = transfer.prompts_per_network * transfer.prompts.shape[1]
    affordable = _MAX_DECODED_TOKENS // (tokens * options.search_rounds)
    return min(options.candidates, max(options.keep, affordable))


def draw_round(problem: InitializationProblem, trace: SearchTrace, round_: int) -> torch.Tensor:
    """Draw the latents (count, B, T, L) of a round, B of prompts placed side by side.

    They are drawn without a score, so that they can be made again at any time. Raises `SourceError` for a
    trace of other prompts or draws than there are.
    """
    transfer = problem.sane_transfer
    assert problem.sampler is not None  # it is bound when the prompts are encoded
    draws, side_by_side = draws_per_round(problem), transfer.prompts_per_network
    _require_known("prompt", trace.near, len(transfer.prompts))
    prompts, rounds = transfer.prompts[list(trace.near)], list[torch.Tensor]()
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
        name = spec.name(problem)
        note = f"{name} {training.score():.3f}"
        report(Progress(job="train prompts", done=i + 1, total=len(few_shot.specs), note=note))
        trained.append(from_module(training.module.cpu().eval(), f"{name}, trained on the task"))
    return trained


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
