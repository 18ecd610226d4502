"""Rank initialisations without training, and without held-out images.

A ridge classifier is fitted to the features that the network gives the training images in training mode,
norms reading the batch: it is what training starts from. Each image is predicted by the fit to the others,
in closed form. The method: docs/explanation/sane.md, section 6.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import ceil

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.grafting import (
    LeftOutLosses,
    RidgeFit,
    find_classifier,
    fit_ridge,
    lead,
    norms_in_training_mode,
    write_classifier,
)
from sane_plugins.initialize.candidates import (
    BuiltNetwork,
    Candidate,
    CandidateBuilder,
    classifier_softness,
    copy_state,
)
from sane_plugins.initialize.kinds import CandidateScore, CandidateSpec, Kind, Statistics
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.tasks import logits

_BATCH_SIZE = 64
CLEAR_LEAD = 2.0  # standard errors: what differs by less is about equal


@torch.no_grad()
def rank(
    module: nn.Module,
    problem: InitializationProblem,
    images: int,
    statistics: Statistics = "measured",
    kind: Kind = Kind.DEFAULT_FITTED,
) -> RidgeFit:
    """Rank by at most so many training images.

    In place, norms then have the statistics of these images, unless `statistics` are its `own`; and the
    classifier is fitted to them, where the problem fits it and the `kind` is no plain default.
    """
    task = problem.task
    x, y = task.x_train[:images], task.y_train[:images]
    layer = find_classifier(module, x[:2])
    measure = norms_in_training_mode(module) if statistics == "measured" else nullcontext()
    with _features(layer) as features, measure:
        module.eval() if statistics == "own" else None
        for batch in x.chunk(ceil(len(x) / _BATCH_SIZE)):  # of equal size: no last one of one image
            output = logits(module, batch)
            if layer is None:
                features.append(output.flatten(1))
    fit = fit_ridge(torch.cat(features), y, len(task.classes))
    if layer is not None and kind is not Kind.DEFAULT and problem.fits_classifier:
        write_classifier(layer, fit, classifier_softness(module, kind))
    return fit


def rank_candidate(
    builder: CandidateBuilder,
    spec: CandidateSpec,
    images: int,
    latents: torch.Tensor | None = None,
) -> Candidate:
    """Make a candidate and rank it; its norms and classifier are fitted to the images it is ranked by.

    A plain default beside which others are fitted is not ranked: its features are those of any default, and
    untrained it tells nothing. A prompt's own running statistics are kept where they do better by two
    standard errors: measuring anew harms a network that is whole.
    """
    built = builder.assemble(spec, latents)
    problem, module = builder.problem, built.module
    if spec.kind is Kind.DEFAULT and problem.fits_classifier:
        # What is given may be trained; without a race this alone says how good it is as it stands.
        if problem.is_fresh or problem.options.scored:
            return Candidate(built, _score(built, problem))
        unranked = Candidate(built, _score(built, problem))
        return _with_losses(unranked, _judge(module, problem, images))
    before = copy_state(module)
    fit = training_fit = rank(module, problem, images, kind=spec.kind)
    if spec.kind is Kind.DEFAULT:
        module.load_state_dict(before)
    elif spec.kind in (Kind.PROMPT, Kind.TRANSFER) and _lends_statistics(before, problem):
        measured = copy_state(module)
        module.load_state_dict(before)
        own = rank(module, problem, images, statistics="own", kind=spec.kind)
        if lead(own, fit) > CLEAR_LEAD:
            fit, built = own, replace(built, spec=replace(spec, statistics="own"))
        else:
            module.load_state_dict(measured)
    module.load_state_dict(built.kept, strict=False)
    candidate = Candidate(built, _score(built, problem), training_fit=training_fit)
    return _with_losses(candidate, fit)


@torch.no_grad()
def _judge(module: nn.Module, problem: InitializationProblem, images: int) -> LeftOutLosses:
    """Judge a network as it is, in evaluation mode and with its own classifier; nothing is fitted."""
    task = problem.task
    module.eval()
    batches = task.x_train[:images].split(_BATCH_SIZE)
    outputs = torch.cat([logits(module, batch) for batch in batches]).double()
    labels = task.y_train[:images]
    return LeftOutLosses(
        loo_loss_per_image=cross_entropy(outputs, labels, reduction="none"),
        loo_accuracy=float((outputs.argmax(1) == labels).double().mean()),
    )


def _with_losses(candidate: Candidate, losses: LeftOutLosses) -> Candidate:
    score = replace(candidate.score, loo_loss=losses.loo_loss, loo_accuracy=losses.loo_accuracy)
    return replace(candidate, score=score, losses=losses)


def _score(built: BuiltNetwork, problem: InitializationProblem) -> CandidateScore:
    spec = built.spec
    return CandidateScore(name=spec.name(problem), kind=spec.kind, seed=built.seed)


def leads(ours: Candidate, theirs: Candidate) -> bool:
    """Return whether a candidate's losses are smaller by two standard errors."""
    assert ours.losses is not None  # both were ranked
    assert theirs.losses is not None
    return lead(ours.losses, theirs.losses) > CLEAR_LEAD


def _lends_statistics(state: Mapping[str, torch.Tensor], problem: InitializationProblem) -> bool:
    """Return whether running means are no longer those of a fresh network, which are 0."""
    means = [p.key for p in problem.graph.params if p.role == "running_mean"]
    return any(bool(state[key].any()) for key in means if key in state)


@contextmanager
def _features(layer: nn.Linear | None) -> Iterator[list[torch.Tensor]]:
    """Record the inputs (N, F) of a layer within the block."""
    recorded: list[torch.Tensor] = []

    def store_inputs(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        recorded.append(inputs[0].flatten(0, -2))

    hook = layer.register_forward_pre_hook(store_inputs) if layer is not None else None
    try:
        yield recorded
    finally:
        if hook is not None:
            hook.remove()
