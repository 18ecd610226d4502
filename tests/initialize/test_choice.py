"""What leads by less than two standard errors is about equal, and the plainer is chosen."""

import torch
from torch import nn

from sane_plugins.grafting import RidgeFit
from sane_plugins.initialize import CandidateScore, Kind
from sane_plugins.initialize.candidates import BuiltNetwork, Candidate
from sane_plugins.initialize.choice import choose, difference_error
from sane_plugins.initialize.kinds import CandidateSpec


def trained(kind: Kind, right: int, of: int = 400, rungs: int = 2) -> Candidate:
    answers = torch.arange(of) < right
    curve = tuple((0.5 * (i + 1), right / of) for i in range(rungs))
    score = CandidateScore(name=kind.label, kind=kind, seed=0, before=0.1, curve=curve)
    return Candidate(BuiltNetwork(CandidateSpec(kind), nn.Identity()), score, answers=answers)


def ranked(kind: Kind, loss: float) -> Candidate:
    fit = RidgeFit(
        weight=torch.zeros(2, 3),
        bias=torch.zeros(2),
        penalty=1.0,
        factor=1.0,
        loo_loss_per_image=loss + torch.linspace(-0.1, 0.1, 100, dtype=torch.float64),
        loo_accuracy=0.5,
    )
    score = CandidateScore(name=kind.label, kind=kind, seed=0, loo_loss=loss)
    return Candidate(BuiltNetwork(CandidateSpec(kind), nn.Identity()), score, fit)


def chosen(*candidates: Candidate) -> Kind:
    return choose(candidates)[0].spec.kind


def test_a_clear_lead_is_chosen_and_a_small_one_goes_to_the_plainer() -> None:
    assert chosen(trained(Kind.DEFAULT_FITTED, 200), trained(Kind.SANE, 260)) is Kind.SANE
    level = choose(
        [trained(Kind.SANE, 203), trained(Kind.TRANSFER, 202), trained(Kind.PROMPT, 200)]
    )
    assert [c.spec.kind for c in level] == [Kind.PROMPT, Kind.SANE, Kind.TRANSFER]
    assert [c.score.about_equal for c in level] == [False, True, True]
    assert [c.score.chosen for c in level] == [True, False, False]
    clear = choose([trained(Kind.SANE, 260), trained(Kind.DEFAULT, 200)])
    assert not clear[1].score.about_equal
    assert clear[1].score.error is not None
    assert 0 < clear[1].score.error < 0.15 / 2


def test_the_longer_trained_are_compared_with_each_other_alone() -> None:
    assert chosen(trained(Kind.SANE, 200), trained(Kind.DEFAULT, 300, rungs=1)) is Kind.SANE


def test_where_nothing_was_trained_losses_before_training_decide() -> None:
    assert chosen(ranked(Kind.DEFAULT_FITTED, 2.0), ranked(Kind.TRANSFER, 1.0)) is Kind.TRANSFER
    assert (
        chosen(ranked(Kind.DEFAULT_FITTED, 1.0), ranked(Kind.TRANSFER, 1.0)) is Kind.DEFAULT_FITTED
    )


def test_only_images_that_tell_two_apart_count_as_error() -> None:
    """The error is that of the difference of answers to the same images, not of two unrelated samples."""
    one = torch.arange(1000) < 500
    assert difference_error(one, one) < 0.002
    assert abs(difference_error(one, ~one) - 1000**-0.5) < 1e-4
