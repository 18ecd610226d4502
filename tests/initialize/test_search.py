"""Searching takes values and returns values; a stage ends where its time does, or with Ctrl-C."""

import json
from dataclasses import FrozenInstanceError, asdict
from time import monotonic

import pytest
from torch import nn

from sane_plugins.arguments import from_plain
from sane_plugins.initialize import CandidateScore, Kind
from sane_plugins.initialize.budget import PATIENCE, Budget, Completion, Stage
from sane_plugins.initialize.candidates import BuiltNetwork, Candidate
from sane_plugins.initialize.draws import DrawId, FewShotPrompts, SearchTrace
from sane_plugins.initialize.kinds import CandidateSpec
from sane_plugins.initialize.leaderboard import Leaderboard
from sane_plugins.initialize.outcome.provenance import FewShotRecord
from sane_plugins.initialize.plan import Plan

PLAN = Plan(
    rung=0,
    draws=4,
    defaults=1,
    prompts=2,
    networks=0,
    methods=0,
    scouts=True,
    ranking_images=100,
    keep=2,
    finalists=8,
    steps=10,
    batch=64,
    held_out=100,
    fold_orders=0,
    last_images=2000,
)


def candidate(kind: Kind, number: int, loss: float) -> Candidate:
    score = CandidateScore(name=f"{kind} {number}", kind=kind, seed=0, loo_loss=loss)
    return Candidate(BuiltNetwork(CandidateSpec(kind, number), nn.Identity()), score)


def test_a_trace_grows_into_a_new_one_and_comes_back_from_a_file() -> None:
    first = SearchTrace(near=(0, 2))
    second = first.with_round([DrawId(0, 3), DrawId(0, 1)])
    assert first == SearchTrace(near=(0, 2))
    with pytest.raises(FrozenInstanceError):
        second.near = (1,)  # type: ignore[misc]
    assert isinstance(hash(second), int)
    text = json.dumps(asdict(second))
    assert text == '{"near": [0, 2], "lineage": [[[0, 3], [0, 1]]]}'
    assert from_plain(SearchTrace, json.loads(text), "search") == second
    few_shot = FewShotPrompts((CandidateSpec(Kind.SANE, 1),), second)
    stored = json.loads(json.dumps(few_shot.to_json()))
    record = from_plain(FewShotRecord, stored, "few_shot")
    assert FewShotPrompts(record.recipes, record.course) == few_shot


def test_a_leaderboard_with_a_candidate_is_another_one() -> None:
    empty = Leaderboard(PLAN)
    board = empty
    for i, loss in enumerate((0.3, 0.1, 0.2)):
        board = board.with_candidate(candidate(Kind.SANE, i, loss))
    board = board.with_candidate(candidate(Kind.DEFAULT, 0, 2.0))
    assert not empty.kept
    assert [c.score.loo_loss for c in board.best(Kind.SANE)] == [0.1, 0.2]
    assert [score.loo_loss for score in board.dropped] == [0.3]
    fewer = board.limited(Kind.SANE, 1).with_variant(candidate(Kind.SANE, 1, 0.1))
    assert [c.score.loo_loss for c in fewer.best(Kind.SANE)] == [0.1, 0.1]
    assert [score.loo_loss for score in fewer.dropped] == [0.3, 0.2]
    assert len(board.kept) == 3


def test_a_stage_ends_with_its_time() -> None:
    with Stage(monotonic() - 1) as stage:
        stage.check()
        raise AssertionError("no time is left")
    assert stage.completion == Completion(timed_out=True)
    with Stage(Budget(None).end()) as stage:
        stage.check()
    assert stage.completion == Completion()


def test_an_interruption_ends_a_stage_that_has_a_result_and_else_the_program() -> None:
    with Stage(Budget(None).end()) as stage:
        raise KeyboardInterrupt
    assert stage.completion.interrupted
    with pytest.raises(KeyboardInterrupt), Stage(Budget(None).end(), has_result=False):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="anything else"), Stage(Budget(None).end()):
        raise ValueError("anything else")


def test_a_budget_does_not_change_and_an_interruption_leaves_nothing_of_the_next() -> None:
    budget = Budget(100.0)
    assert budget.after(Completion(timed_out=True)) is budget
    assert budget.after(Completion(interrupted=True)).end() == budget.started
    assert budget.end(0.5) == budget.started + 50 * PATIENCE
    with pytest.raises(FrozenInstanceError):
        budget.seconds = None  # type: ignore[misc]
