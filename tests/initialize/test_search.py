"""Searching takes values and returns values; a stage ends where its time does, or with Ctrl-C."""

import json
from dataclasses import FrozenInstanceError, asdict
from time import monotonic

import pytest
from torch import nn

from sane_plugins.arguments import from_plain
from sane_plugins.initialize import CandidateScore, Kind
from sane_plugins.initialize.budget import Budget, Completion, Stage
from sane_plugins.initialize.candidates import Candidate, CandidateSpec
from sane_plugins.initialize.provenance import FewShotRecord
from sane_plugins.initialize.search import DrawId, FewShotPrompts, Leaderboard, SearchTrace


def candidate(kind: Kind, number: int, before: float) -> Candidate:
    score = CandidateScore(name=f"{kind} {number}", kind=kind, seed=0, before=before)
    return Candidate(CandidateSpec(kind, number), nn.Identity(), {}, score)


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
    empty = Leaderboard({Kind.SANE: 2, Kind.DEFAULT: 1})
    scores = (0.1, 0.3, 0.2)
    board = empty
    for i, before in enumerate(scores):
        board = board.with_candidate(candidate(Kind.SANE, i, before))
    assert not empty.kept
    assert [c.score.before for c in board.kept] == [0.3, 0.2]
    assert [score.before for score in board.dropped] == [0.1]
    fewer = board.with_limit(Kind.SANE, 1).with_variant(candidate(Kind.SANE, 1, 0.3))
    assert [c.score.before for c in fewer.kept] == [0.3, 0.3]
    assert [score.before for score in fewer.dropped] == [0.1, 0.2]
    assert len(board.kept) == 2


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
    assert budget.after(Completion(interrupted=True)).remaining == 0
    assert 99 < budget.remaining <= 100
    assert budget.end(0.5) == budget.started + 50
    with pytest.raises(FrozenInstanceError):
        budget.seconds = None  # type: ignore[misc]
