"""Transfer by feature regression between networks of unlike families: repeatable, blind to labels, better."""

from dataclasses import replace

import pytest
import torch
from graftnets import FAMILIES, MobileNet, PlainNet, ResidualNet, trained
from torch import nn

from sane_plugins.grafting import (
    PromptInfo,
    PromptNetwork,
    RegressionMethod,
    condition,
    find_classifier,
    fit_classifier,
)
from sane_plugins.tasks import Task
from sane_plugins.weights import from_module

RNG = torch.Generator


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def task() -> Task:
    """Return images of class centers in noise, in the order of their classes."""
    labels = torch.arange(5).repeat_interleave(40)
    centers = nn.functional.interpolate(torch.randn(5, 3, 4, 4, generator=_rng()), size=(16, 16))
    images = centers[labels] + torch.randn(200, 3, 16, 16, generator=_rng(1))
    return Task(
        name="noise",
        x_train=images,
        y_train=labels,
        x_test=images[::7],
        y_test=labels[::7],
        classes=tuple("abcde"),
    )


def _prompt(module: nn.Module) -> PromptNetwork:
    return PromptNetwork(
        graph=from_module(module), info=PromptInfo(name="source"), build=lambda: module
    )


def _target(build, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build((8, 14, 16))


@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("target", FAMILIES)
def test_any_family_is_fitted_to_any_other_the_same_way_each_time(source, target, task) -> None:
    prompt = _prompt(trained(FAMILIES[source]()))
    states = []
    for labels in (task.y_train, task.y_train.flip(0)):
        module = _target(FAMILIES[target])
        fresh = {key: value.clone() for key, value in from_module(module).tensors.items()}
        method = RegressionMethod(images=64)
        transplant = method(module, prompt, replace(task, y_train=labels), _rng())
        states.append(module.state_dict())
        now = from_module(module).tensors
        changed = {key for key in fresh if not torch.equal(now[key], fresh[key])}
        counters = {key for key in fresh if key.endswith("num_batches_tracked")}
        statistics = {key for key in fresh if "running" in key}
        assert changed - counters - statistics <= transplant.origins.keys() <= fresh.keys()
        assert "fitted" in transplant.origins.values()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert all(value.isfinite().all() for value in states[0].values())


def _loss(module: nn.Module, task: Task) -> float:
    condition(module, task.x_train, 4, 50, _rng())
    layer = find_classifier(module, task.x_train[:2])
    return fit_classifier(module, layer, task.x_train, task.y_train).loo_loss


@pytest.mark.parametrize("build", [MobileNet, ResidualNet, PlainNet])
def test_what_a_source_knows_reaches_another_family(build, task) -> None:
    source = _target(ResidualNet, 2)
    optimizer = torch.optim.Adam(source.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(source.train()(task.x_train), task.y_train).backward()
        optimizer.step()
    prompt = _prompt(source.eval().requires_grad_(requires_grad=False))
    transferred, default = _target(build), _target(build)
    RegressionMethod()(transferred, prompt, task, _rng())
    assert _loss(transferred, task) < 0.8 * _loss(default, task)


@torch.no_grad()
def test_protection_changes_what_trains_and_not_what_is_computed(task) -> None:
    prompt = _prompt(trained(MobileNet()))
    plain, protected = _target(MobileNet), _target(MobileNet)
    RegressionMethod()(plain, prompt, task, _rng())
    RegressionMethod(protect=4.0)(protected, prompt, task, _rng())
    torch.testing.assert_close(
        protected.eval()(task.x_test), plain.eval()(task.x_test), rtol=1e-3, atol=1e-3
    )
    assert protected.head[0].weight.std() > 1.1 * plain.head[0].weight.std()
