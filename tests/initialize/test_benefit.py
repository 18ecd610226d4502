"""The gate follows the evidence, of each family apart, and says nothing where there is none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts, embedded_prompts
from sane_plugins.initialize import (
    CandidateScore,
    Family,
    InitializeOptions,
    Kind,
    initialize,
)
from sane_plugins.initialize.candidates import BuiltNetwork, Candidate
from sane_plugins.initialize.kinds import CandidateSpec
from sane_plugins.initialize.outcome.benefit import best_rivals, common_best, forecast_benefit
from sane_plugins.tasks import load_task
from sane_plugins.weights import from_module


def row(kind, before: float, *curve: float) -> CandidateScore:
    rungs = tuple((0.25 * 2**i, share) for i, share in enumerate(curve))
    return CandidateScore(name=kind, kind=Kind(kind), seed=0, before=before, curve=rungs)


def candidate(kind: Kind, *curve: float) -> Candidate:
    return Candidate(BuiltNetwork(CandidateSpec(kind), nn.Identity()), row(kind, 0.1, *curve))


def test_more_evidence_for_the_generated_is_a_higher_chance() -> None:
    plain = row("default", 0.4, 0.5, 0.5)
    gains = (-0.3, 0.0, 0.3)
    ours = [row("sane", 0.4 + gain, 0.5 + gain, 0.5 + gain) for gain in gains]
    chances = [forecast_benefit(x, plain, 500).probability for x in ours]
    assert chances == sorted(chances)
    assert chances[0] < 0.5 < chances[-1]
    assert forecast_benefit(ours[2], plain, 20).probability < chances[-1]
    assert not forecast_benefit(ours[1], plain, 500).helps_clearly
    folds = [forecast_benefit(ours[1], plain, 500, margin) for margin in (-8.0, 8.0)]
    assert [x.helps for x in folds] == [False, True]


def test_only_what_both_were_trained_to_is_compared() -> None:
    assert common_best(row("sane", 0.2, 0.3, 0.9), row("default", 0.2, 0.3)) == (0.3, 0.3)


def test_nothing_is_told_without_a_trained_fair_rival() -> None:
    """A prompt is no generated weight, and a bare default no rival of what has a fitted classifier."""
    ours, fair = candidate(Kind.SANE, 0.5), candidate(Kind.DEFAULT_FITTED, 0.4)
    bare, lent = candidate(Kind.DEFAULT, 0.3), candidate(Kind.PROMPT, 0.6)
    assert best_rivals([ours, fair, bare], Family.SANE, fits_classifier=True) == (ours, fair)
    assert best_rivals([ours, bare], Family.SANE, fits_classifier=True) is None
    assert best_rivals([ours, bare], Family.SANE, fits_classifier=False) == (ours, bare)
    assert best_rivals([lent, fair], Family.SANE, fits_classifier=True) is None
    assert best_rivals([ours, fair], Family.TRANSFER, fits_classifier=True) is None
    untrained = replace(fair, score=replace(fair.score, curve=()))
    assert best_rivals([ours, untrained], Family.SANE, fits_classifier=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("good", [True, False])
def test_good_prompts_are_trusted_and_bad_ones_are_not(good: bool) -> None:
    task = load_task("digits", 28)
    prompts = list(choose_prompts(small_cnn(), embedded_prompts()).graphs[:2])
    if not good:  # no unit of theirs ever answers; merely random ones may be as good as a default
        torch.manual_seed(0)
        dead = from_module(small_cnn())
        biases = [p for p in dead.params if p.role == "bias"]
        prompts = [dead.replace({p.key: torch.full(p.shape, -1e3) for p in biases})]
    options = InitializeOptions(candidates=2, keep=1)
    done = initialize(small_cnn, task, prompts, embedded_sane(), options)
    assert done.forecast is not None
    assert done.forecast.helps is good
    assert (done.chosen != "default") is good
    said = "are expected" if good else "are not expected"
    (note,) = [note for note in done.notes if said in note]
    assert "probability 100%" not in note and "probability 0%" not in note  # nobody knows that
    assert isinstance(done.module, nn.Module)
