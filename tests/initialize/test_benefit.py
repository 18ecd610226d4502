"""The gate follows the evidence, and says nothing where there is none."""

import pytest
import torch
from torch import nn

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts, embedded_prompts
from sane_plugins.initialize import CandidateScore, InitializeOptions, Kind, initialize
from sane_plugins.initialize.benefit import forecast_benefit, race_margins
from sane_plugins.tasks import load_task
from sane_plugins.weights import from_module


def row(kind, before: float, *curve: float) -> CandidateScore:
    rungs = tuple((0.25 * 2**i, share) for i, share in enumerate(curve))
    return CandidateScore(name=kind, kind=Kind(kind), seed=0, before=before, curve=rungs)


def test_more_evidence_for_the_generated_is_a_higher_chance() -> None:
    plain = row("default", 0.4, 0.5, 0.5)
    rows = [[row("sane", 0.4 + gain, 0.5 + gain, 0.5 + gain), plain] for gain in (-0.3, 0.0, 0.3)]
    found = [forecast_benefit(x, 500) for x in rows]
    chances = [x.probability for x in found if x is not None]
    assert chances == sorted(chances)
    assert chances[0] < 0.5 < chances[-1]
    few = forecast_benefit(rows[2], 20)
    assert few is not None
    assert few.probability < chances[-1]
    level = forecast_benefit([row("sane", 0.4, 0.5), row("default", 0.4, 0.5)], 500)
    assert level is not None
    assert level.is_close
    folds = [forecast_benefit(rows[1], 500, margin) for margin in (-8.0, 8.0)]
    assert [x.helps for x in folds if x is not None] == [False, True]


def test_only_what_both_were_trained_to_is_compared() -> None:
    longer = [row("sane", 0.2, 0.3, 0.9), row("default", 0.2, 0.3)]
    assert race_margins(longer, 100) == (0.0, 0.0)
    assert forecast_benefit([row("sane", 0.5)], 100) is None


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
    assert any(said in note for note in done.notes)
    assert isinstance(done.module, nn.Module)
