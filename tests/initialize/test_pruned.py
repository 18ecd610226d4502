"""A pruned network takes a second task, and its first task's outputs stay, bit for bit."""

import json
from copy import deepcopy
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from sane_plugins.architectures import small_cnn
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.cli.initialize import main
from sane_plugins.errors import UsageError
from sane_plugins.generation import choose_prompts, embedded_prompts
from sane_plugins.initialize import (
    InitializeOptions,
    PrunedNetwork,
    TrainOptions,
    first_task,
    initialize,
    train_epochs,
)
from sane_plugins.initialize.pruned import sparsity
from sane_plugins.tasks import load_task
from sane_plugins.weights import from_module

FACTORY = "sane_plugins.architectures.families:small_cnn"


def network(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        *more,
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
    return cut(module)


def cut(module: nn.Module, share: float = 0.8) -> nn.Module:
    """Prune all matrices together, by size."""
    parts = [(m, "weight") for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(parts, prune.L1Unstructured, amount=share)
    for part, name in parts:
        prune.remove(part, name)
    return module


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("more", [(), (nn.BatchNorm2d(8),)])
def test_training_leaves_the_first_task_alone(optimizer, more) -> None:
    task = load_task("digits").subset(300, torch.Generator().manual_seed(0))
    first = network(*more).eval()
    last = len(first) - 1
    found = PrunedNetwork.of(from_module(first), {f"{last}.weight", f"{last}.bias"})
    second = deepcopy(first)
    with torch.no_grad():
        for key, parameter in second.named_parameters():
            parameter.copy_(found.with_survivors({key: torch.randn_like(parameter)})[key])
    before = {key: value.clone() for key, value in second.state_dict().items()}
    options = TrainOptions(optimizer=optimizer, lr=0.01, weight_decay=0.1)
    rng = torch.Generator().manual_seed(0)
    train_epochs(second, task, 2, options, rng, found)
    assert all(not torch.equal(second.state_dict()[k], before[k]) for k in found.survives)
    again = deepcopy(first)
    again.load_state_dict(first_task(second.state_dict(), found.first_task_tensors()), strict=True)
    assert torch.equal(again.eval()(task.x_test), first(task.x_test))


def test_what_is_chosen_keeps_the_survivors_and_learns() -> None:
    task = load_task("digits", 28)
    torch.manual_seed(1)
    first = cut(small_cnn(1, 10))
    assert sparsity(dict(from_module(first).tensors)) > 0.7
    prompts = choose_prompts(small_cnn(), embedded_prompts()).graphs
    options = InitializeOptions(candidates=2, keep=1, pruned=True, images=300)
    done = initialize(first, task, prompts, embedded_sane(), options)
    assert done.first_task is not None
    again = first_task(done.module.state_dict(), done.first_task)
    assert all(torch.equal(again[k], v) for k, v in first.state_dict().items())
    assert sparsity(done.module.state_dict()) < 0.3
    assert any("may use" in note for note in done.notes)


def test_nothing_pruned_is_a_wrong_use() -> None:
    with pytest.raises(UsageError, match="no weight"):
        PrunedNetwork.of(from_module(small_cnn()), set())


def test_the_command_writes_what_the_first_task_needs(tmp_path) -> None:
    torch.manual_seed(2)
    first = cut(small_cnn(1, 7))
    torch.save(first.state_dict(), tmp_path / "first.pt")
    output = tmp_path / "second.safetensors"
    run = partial(CliRunner().invoke, main)
    given = [
        str(tmp_path / "first.pt"),
        "--factory",
        FACTORY,
        "-o",
        str(output),
        "--samples",
        "2",
        "--keep",
        "1",
        "--budget",
        "4",
        "--size",
        "28",
    ]
    done = run([*given, "--pruned", "--json"])
    assert done.exit_code == 0, done.output
    assert any("first-task" in note for note in json.loads(done.stdout)["notes"])
    again = first_task(load_file(output), load_file(tmp_path / "second.first-task.safetensors"))
    shared = [key for key, value in first.state_dict().items() if again[key].shape == value.shape]
    assert len(shared) >= 8
    assert all(torch.equal(again[key], first.state_dict()[key]) for key in shared)
    assert run(["verify", str(output), "--factory", FACTORY]).exit_code == 0
