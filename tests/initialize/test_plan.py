"""The work is decided once: by the first rung of a ladder that fits into the time, or the one asked for."""

from dataclasses import replace
from functools import partial
from time import sleep

import pytest
import torch

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts, embedded_prompts
from sane_plugins.initialize import InitializeOptions, initialize
from sane_plugins.initialize import plan as plan_module
from sane_plugins.initialize.plan import LEAST_STEPS, Speed, describe, make_plan
from sane_plugins.initialize.problem import InitializationProblem, set_up
from sane_plugins.tasks import load_task


@pytest.fixture(scope="module")
def problem() -> InitializationProblem:
    task = load_task("digits", 28).subset(800, torch.Generator().manual_seed(0))
    prompts = choose_prompts(small_cnn(), embedded_prompts(), 4).graphs
    options = InitializeOptions(rung=0)
    found = set_up(partial(small_cnn, 1, 10), task, prompts, embedded_sane(), options)
    return replace(found, options=replace(options, rung=None))


@pytest.fixture
def at_speed(monkeypatch):
    def set_speed(image: float, step: float) -> None:
        speed = Speed(image, step)
        monkeypatch.setattr(Speed, "measured", classmethod(lambda *_: speed))

    return set_speed


def test_a_slower_machine_does_a_power_of_two_less(problem, at_speed) -> None:
    plans = []
    for slower in (1, 1.2, 30):
        at_speed(1e-4 * slower, 1e-2 * slower)
        plans.append(make_plan(problem, 60.0))
    assert plans[0].rung == 0
    assert {**vars(plans[0]), "seconds": 0} == {**vars(plans[1]), "seconds": 0}
    assert plans[2].rung > 0
    assert plans[2].draws == max(1, 16 >> plans[2].rung)
    assert LEAST_STEPS <= plans[2].steps < plans[0].steps
    assert 3 <= plans[2].finalists <= plans[0].finalists
    assert plans[2].seconds <= 60


def test_a_rung_that_is_asked_for_is_taken_whatever_the_machine_does(problem, at_speed) -> None:
    at_speed(1.0, 100.0)
    asked = replace(problem, options=replace(problem.options, rung=2))
    plan = make_plan(asked, 1.0)
    assert (plan.rung, plan.draws) == (2, 4)
    assert plan.steps > 0


def test_where_nothing_can_be_trained_that_is_planned_and_said(problem, at_speed) -> None:
    at_speed(1.0, 100.0)
    plan = make_plan(problem, 1.0)
    assert plan.steps == 0
    assert "none will be trained" in describe(plan, problem)


def test_without_a_budget_nothing_is_measured(problem, monkeypatch) -> None:
    monkeypatch.setattr(plan_module, "perf_counter", None)
    assert make_plan(problem, None).rung == 0


def test_speed_is_measured_in_seconds(problem) -> None:
    speed = Speed.measured(problem)
    assert 0 < speed.image < 1
    assert speed.image < speed.step < 60


def test_what_other_programs_make_us_wait_is_no_slowness() -> None:
    waiting = partial(sleep, 0.2)  # as if another program ran
    assert plan_module._seconds(waiting, "cpu") < 0.1
    # Without limit it is not: a machine that lends us nothing is slow.
    assert plan_module._seconds(waiting, "cpu") >= 0.2 / plan_module._MOST_WAITING


def test_the_plan_is_said_before_the_work_and_recorded(problem) -> None:
    events = []
    task = load_task("digits", 28).subset(200, torch.Generator().manual_seed(0))
    options = InitializeOptions(candidates=2, keep=1, rung=3)
    done = initialize(small_cnn, task, problem.prompts, embedded_sane(), options, events.append)
    assert events[0].is_announcement
    assert "will rank 1 SANE candidates, 1 prompts" in events[0].job
    assert not any(event.is_announcement for event in events[1:])
    assert done.provenance["plan"]["rung"] == 3
    assert done.provenance["options"]["rung"] == 3
    assert any(row.curve for row in done.rows)
