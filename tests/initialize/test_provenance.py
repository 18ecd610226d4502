"""What a file tells of itself makes it again; budgets, globs and Ctrl-C do what they promise."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from sane_plugins.cli.initialize import main
from sane_plugins.formats import LazyTensors
from sane_plugins.initialize.leaderboard import Leaderboard
from sane_plugins.tasks import load_task


@pytest.fixture
def task(tmp_path):
    """Write a tiny task of 28x28 images whose brightness tells the class."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.integers(0, 40, (120, 28, 28)) + 60 * y[:, None, None]).astype(np.uint8)
    path = tmp_path / "task.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


def run(*arguments: object):
    return CliRunner().invoke(main, [str(x) for x in arguments])


def init(task, output, *more: object):
    return run("--task", task, "-o", output, "--samples", 2, "--keep", 1, *more)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--search", "bootstrap", "--rounds", 2, "--sampler", "gaussian"),
        ("--few-shot", 2, "--few-shot-epochs", 1),
        ("--refine", 2),
        ("--refine", 2, "--no-score"),
    ],
)
def test_verify_makes_the_same_bytes(task, tmp_path, more) -> None:
    output = tmp_path / "out.safetensors"
    done = init(task, output, *more)
    assert done.exit_code == 0, done.output
    again = run("verify", output)
    assert again.exit_code == 0, again.output
    assert "same bytes" in again.output


def test_metadata_is_one_entry_that_tells_all(task, tmp_path) -> None:
    output = tmp_path / "out.safetensors"
    init(task, output, "--seed", 5)
    stored = LazyTensors(output).metadata
    assert len(stored) == 1
    told = json.loads(stored["sane"])["provenance"]
    assert told["seed"] == 5
    assert len(told["prompts"]) > 1
    assert {p["licence"] for p in told["prompts"]} == {told["licences"]["sane-plugins"]}
    assert any(row["chosen"] for row in told["scores"])
    assert str(tmp_path) not in json.dumps(
        {k: v for k, v in told.items() if k not in ("command", "task")}
    )


def test_verify_says_what_differs(task, tmp_path) -> None:
    output = tmp_path / "out.safetensors"
    init(task, output)
    changed = {key: value + 1 for key, value in load_file(output).items()}
    save_file(changed, tmp_path / "changed.safetensors", dict(LazyTensors(output).metadata))
    done = run("verify", tmp_path / "changed.safetensors", "--json")
    assert done.exit_code == 1
    assert "changed" in json.loads(done.stdout)["differs"]
    arrays = dict(np.load(task))
    np.savez(task, **{**arrays, "x_train": arrays["x_train"][::-1]})
    done = run("verify", output)
    assert done.exit_code == 1
    assert "task" in done.stdout
    save_file(changed, tmp_path / "plain.safetensors")
    done = run("verify", tmp_path / "plain.safetensors")
    assert done.exit_code == 1
    assert "does not say" in done.output


def test_verify_refuses_what_is_missing_or_broken(tmp_path) -> None:
    done = run("verify", tmp_path / "none.safetensors")
    assert done.exit_code == 1
    assert "it does not exist" in done.stderr
    weights = tmp_path / "a.pt"
    torch.save({}, weights)
    weights.with_name("a.pt.provenance.json").write_bytes(b"\xff{")
    done = run("verify", weights)
    assert done.exit_code == 1
    assert "its origin is broken" in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_globs_leave_the_rest_of_a_checkpoint_alone(task, tmp_path) -> None:
    factory = "sane_plugins.architectures.families:small_cnn"
    from sane_plugins.architectures import small_cnn

    torch.manual_seed(1)
    before = small_cnn(1, 3).state_dict()
    torch.save(before, tmp_path / "own.pt")
    keys = list(before)
    done = init(
        task,
        tmp_path / "out.safetensors",
        tmp_path / "own.pt",
        "--factory",
        factory,
        "--include",
        keys[0],
        "--include",
        keys[1],
        "--exclude",
        keys[1],
    )
    assert done.exit_code == 0, done.output
    assert "1 of" in done.stderr
    after = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in keys[1:])
    done = init(task, tmp_path / "no.safetensors", "--include", "no-such-*")
    assert done.exit_code == 2
    assert "no tensor" in done.stderr


def test_a_short_budget_still_compares_every_kind(tmp_path) -> None:
    done = run("--task", "digits", "-o", tmp_path / "out.safetensors", "--budget", 0.01, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {"sane", "default", "prompt"} <= {row["kind"] for row in told["rows"]}
    assert any("budget" in text for text in told["notes"])
    assert run("verify", tmp_path / "out.safetensors").exit_code == 0


@pytest.mark.parametrize("after", [0, 3])
def test_interruption_writes_the_best_so_far(task, tmp_path, monkeypatch, after: int) -> None:
    with_candidate, calls = Leaderboard.with_candidate, []

    def interrupted(self, new) -> Leaderboard:
        if len(calls) >= after:
            raise KeyboardInterrupt
        calls.append(new)
        return with_candidate(self, new)

    monkeypatch.setattr(Leaderboard, "with_candidate", interrupted)
    done = init(task, tmp_path / "out.safetensors", "--json")
    assert done.exit_code == 130
    assert (tmp_path / "out.safetensors").exists() is bool(after)
    if after:
        assert any("best so far" in text for text in json.loads(done.stdout)["notes"])


def test_an_unknown_device_is_refused(task, tmp_path) -> None:
    done = init(task, tmp_path / "out.safetensors", "--device", "no-such")
    assert done.exit_code == 2
    assert "--device" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_does_the_same_work(task, tmp_path) -> None:
    done = init(task, tmp_path / "out.safetensors", "--device", "cuda")
    assert done.exit_code == 0, done.output
    assert load_task(task).x_train.device.type == "cpu"
