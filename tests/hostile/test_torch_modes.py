"""The defaults and modes of a program that we live in change no answer."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sane_plugins.host import Host
from sane_plugins.initialize import InitializeOptions
from sane_plugins.tasks import load_task


@contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "default double": lambda: _default_dtype(torch.float64),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def answers():
    torch.manual_seed(0)
    network, prompt = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), nn.Linear(64, 10)
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task = load_task("digits", size=8)
    options = InitializeOptions(candidates=2, keep=1, images=64, rung=3)

    def ask():
        host = Host.installed()
        made = host.initialize(target, task, [prompt], options)
        estimates = {name: x.value for name, x in host.predict(network).items()}
        return host.encode(network).embedding, estimates, made.module[1].weight.detach()

    return ask, ask()


@pytest.mark.parametrize("mode", MODES)
def test_a_programs_modes_change_no_answer(answers, mode: str) -> None:
    ask, (embedding, estimates, weight) = answers
    with MODES[mode]():
        found = ask()
    assert torch.equal(found[0], embedding)
    assert found[1] == estimates
    assert torch.equal(found[2], weight)
    assert found[2].dtype == torch.float32
