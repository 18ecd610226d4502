"""Several processes train as one: same result at equal global batch, one writes, a killed run resumes."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sane_plugins.architectures import build
from sane_plugins.cli.main import main
from sane_plugins.pretraining import read_log
from sane_plugins.zoo import Entry, write_zoo

pytestmark = pytest.mark.slow
SHAPE = [
    "--batch",
    "8",
    "--precision",
    "fp32",
    "--width",
    "32",
    "--heads",
    "2",
    "--layers",
    "1",
    "--token-width",
    "64",
    "--window",
    "16",
    "--halo",
    "8",
]


@pytest.fixture(scope="module")
def zoos(tmp_path_factory) -> list[str]:
    """Write zoos of two architectures."""
    torch.manual_seed(0)
    folders = []
    for channels in (1, 3):
        factory = {"name": "small_cnn", "channels_in": channels}
        entries = [
            Entry(network=str(n), checkpoint="0", factory=factory, properties={}) for n in range(4)
        ]
        items = [(entry, build(factory).state_dict()) for entry in entries]
        folders.append(tmp_path_factory.mktemp("zoos") / str(channels))
        write_zoo(folders[-1], f"cnn{channels}", items)
    return [str(folder) for folder in folders]


def pretrain(zoos: list[str], out: Path, processes: int, *arguments: str) -> str:
    """Train, one process being this one, and return what was told."""
    command = ["pretrain", *zoos, "-o", str(out), *SHAPE, *arguments]
    if processes == 1:
        alone = CliRunner().invoke(main, command)
        assert alone.exit_code == 0, alone.output
        return alone.stderr
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, "-m", *several, "-m", "sane_plugins", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


# Saves once and waits, so that it is killed there however busy the machine is.
WAITING = """
import time
from sane_plugins.cli.main import main
from sane_plugins.pretraining import trainer_state
save_state = trainer_state.save_state
def save_and_wait(*arguments):
    save_state(*arguments)
    time.sleep(600)
trainer_state.save_state = save_and_wait
main()
"""


def started(
    zoos: list[str], out: Path, rank: int, port: int, *arguments: str
) -> subprocess.Popen[bytes]:
    """Start one of two processes as torchrun does, which waits after its first step, to be killed."""
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            WAITING,
            "pretrain",
            *zoos,
            "-o",
            str(out),
            *SHAPE,
            *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", **place},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def difference(one: Path, two: Path) -> float:
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


STEPS = ["--steps", "12"]


@pytest.fixture(scope="module")
def whole(zoos, tmp_path_factory) -> Path:
    """Train with two processes and no interruption."""
    out = tmp_path_factory.mktemp("whole") / "two.safetensors"
    assert pretrain(zoos, out, 2, *STEPS, "--accumulate", "2").count("Written to") == 1
    return out


def assert_alike(one: Path, two: Path) -> None:
    assert difference(one, two) < 1e-5
    for a, b in zip(*(read_log(x.with_name(x.name + ".jsonl")) for x in (one, two)), strict=True):
        assert a["step"] == b["step"]
        assert all(a[k] == pytest.approx(b[k], rel=1e-4) for k in a if k != "seconds")


def test_two_processes_equal_one(zoos, whole, tmp_path) -> None:
    one = tmp_path / "one.safetensors"
    pretrain(zoos, one, 1, *STEPS, "--accumulate", "2")
    assert_alike(one, whole)


def test_two_processes_equal_one_with_the_masked_loss(zoos, tmp_path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for out, processes in ((one, 1), (two, 2)):
        chosen = ["--loss", "masked", "--gamma", "0.5"]
        pretrain(zoos, out, processes, "--steps", "5", *chosen)
    assert_alike(one, two)


def test_a_run_of_two_processes_resumes_exactly(zoos, whole, tmp_path) -> None:
    out = tmp_path / "two.safetensors"
    command = [*STEPS, "--accumulate", "2", "--save-every", "1"]
    state = out.with_name(out.name + ".state")
    with (
        socket.socket() as kept
    ):  # bound: nobody else is given this port, and the first process may listen
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        running = [started(zoos, out, rank, port, *command) for rank in range(2)]
        try:
            while not state.exists() and running[0].poll() is None:
                time.sleep(0.01)
        finally:
            for process in running:
                process.kill()
                process.wait()
    assert state.exists()
    pretrain(zoos, out, 2, *command, "--resume")
    assert difference(whole, out) == 0


def test_two_processes_hide_the_tokens_that_one_hides(zoos, tmp_path) -> None:
    chosen = ["--steps", "4", "--hidden", "1", "--canonical", "--balance", "architectures"]
    for processes in (1, 2):
        pretrain(zoos, tmp_path / f"{processes}.safetensors", processes, *chosen)
    assert difference(tmp_path / "1.safetensors", tmp_path / "2.safetensors") < 1e-5
