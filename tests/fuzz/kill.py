"""Ten kills without warning, at random moments, of zoo training and of pretraining: is the end the same?

    python tests/fuzz/kill.py --data ../shared/data [--kills 10] [--seed 0]

Each job is a command on a tiny run. It runs once undisturbed; then it is started and killed (SIGKILL to it and
its children) a random time after its first step, and started again, until it has been killed that often; a run
that ends before that is compared and followed by the next. After each kill the state on disk is compared with
what was done, as the log of pretraining and an observing plugin in zoo training say (the one is written before
the state, the other told after it): a step that is not in the state is lost, and at most the one under way may
be. At the end the files are compared byte by byte with those of the
undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sane_plugins.pretraining import log_path, read_log, state_path
from sane_plugins.zoo import import_published, write_zoo
from sane_plugins.zoo_training.group_trainer import load_group_state

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_OBSERVER = """
import os
from sane_plugins import hookimpl

@hookimpl
def sane_progress(event):
    with open(os.environ["KILL_OBSERVED"], "a") as file:
        file.write(f"{event.job}\\t{event.done}\\n")
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that can be killed: its arguments for a folder, how it reports, and what it writes there.

    `done` and `kept` return how many steps were done, and how many of them the state on disk has; the one
    under way is at most `most` of them (networks that train together take as many).
    """

    name: str
    progress: str
    command: Callable[[Path], list[str]]
    output: str
    done: Callable[[Path], int]
    kept: Callable[[Path], int]
    most: int


def pretraining(zoo: Path) -> Job:
    """Return a pretraining of 150 steps of a tiny SANE, with a line of the log for each."""

    def command(folder: Path) -> list[str]:
        return [
            "pretrain",
            str(zoo),
            "-o",
            str(folder / "sane.safetensors"),
            "--resume",
            "--steps",
            "150",
            "--batch",
            "8",
            "--width",
            "96",
            "--layers",
            "1",
            "--log-every",
            "1",
            "--save-every",
            "1",
        ]

    def done(folder: Path) -> int:
        """Return the last step of the log, which is written before the state."""
        lines = read_log(log_path(folder / "sane.safetensors"))
        return int(lines[-1]["step"]) if lines else 0

    def kept(folder: Path) -> int:
        out = folder / "sane.safetensors"
        if out.exists():
            return done(folder)
        if not state_path(out).exists():
            return 0
        with safe_open(state_path(out), framework="pt") as file:
            return int(json.loads(file.metadata()["sane_run"])["step"])

    return Job(
        name="pretraining",
        progress="pretrain",
        command=command,
        output="sane.safetensors",
        done=done,
        kept=kept,
        most=1,
    )


def zoo_training(data: Path, networks: int = 4) -> Job:
    """Return the training of small networks, as many groups as architectures, for 4 epochs of 32 steps."""

    def command(folder: Path) -> list[str]:
        return [
            "zoo",
            "train",
            "--task",
            str(data / "datasets" / "mnist.npz"),
            "-o",
            str(folder / "zoo"),
            "--resume",
            "--networks",
            str(networks),
            "--act",
            "relu",
            "--epochs",
            "4",
            "--keep",
            "0,2,4",
            "--images",
            "2048",
            "--save-every",
            "1",
        ]

    def done(folder: Path) -> int:
        """Return the steps of all networks, added up."""
        return max(_told(folder, "train networks"), default=0)

    def kept(folder: Path) -> int:
        if (folder / "zoo").exists():
            return done(folder)
        states = [
            load_group_state(path) for path in (folder / "zoo.state").glob("group-*.safetensors")
        ]
        return sum(int(record["step"]) * len(tensors["alive"]) for record, tensors in states)

    return Job(
        name="zoo training",
        progress="train networks",
        command=command,
        output="zoo",
        done=done,
        kept=kept,
        most=networks,
    )


def main() -> None:
    """Kill each job, print the table, and fail where anything was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        _write_observer(Path(scratch))
        data = arguments.data.resolve()
        jobs = [zoo_training(data), pretraining(_tiny_zoo(data, Path(scratch)))]
        found = [
            _measured(job, Path(scratch), arguments.kills, random.Random(arguments.seed))
            for job in jobs
        ]
    table = _table(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "kill.md").write_text(table)
    print(table)
    sys.exit(any(row["most_lost"] > row["under_way"] or not row["equal"] for row in found))


def _tiny_zoo(data: Path, scratch: Path) -> Path:
    """Write a zoo of eight networks of mnist-cnn."""
    zoo = import_published(data / "zoos" / "mnist-cnn.json")
    few = zoo.where(lambda entry: entry.network in zoo.networks[:8])
    return write_zoo(
        scratch / "zoo", "few", ((e, few.state_dict(e)) for e in few.entries)
    ).weights.parent


def _measured(job: Job, scratch: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Run a job undisturbed, then killed; return what was lost and whether the files are the same."""
    folder = scratch / job.name / "whole"
    running = _begun(job, folder)
    start = time.perf_counter()
    running.wait()
    seconds = time.perf_counter() - start
    expected = _digest(job, folder)
    lost: list[int] = []
    moments: list[int] = []
    is_equal, runs = True, 0
    while len(lost) < kills:
        folder = scratch / job.name / str(runs)
        runs += 1
        while len(lost) < kills and _is_killed(job, folder, rng.uniform(0, seconds / 3)):
            kept = job.kept(folder)
            moments.append(kept)
            lost.append(max(job.done(folder) - kept, 0))
            print(f"{job.name}: killed after step {kept}, {lost[-1]} lost", file=sys.stderr)
        if not (folder / job.output).exists():
            _begun(job, folder).wait()
        is_equal &= _digest(job, folder) == expected
    return {
        "job": job.name,
        "kills": len(lost),
        "runs": runs,
        "state_after": moments,
        "lost": lost,
        "most_lost": max(lost),
        "under_way": job.most,
        "equal": is_equal,
        "seconds_of_steps": round(seconds, 1),
    }


def _start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sane_plugins", *job.command(folder)]
    scratch = folder.parents[1]
    places = [str(scratch), *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {"PYTHONPATH": os.pathsep.join(places), "KILL_OBSERVED": str(folder / "observed")}
    return subprocess.Popen(
        command,
        start_new_session=True,
        env={**os.environ, **told},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _begun(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    """Start a job and wait for its first step, or its end."""
    before = len(_told(folder, job.progress))
    running = _start(job, folder)
    while running.poll() is None and len(_told(folder, job.progress)) == before:
        time.sleep(0.005)
    return running


def _is_killed(job: Job, folder: Path, after: float) -> bool:
    """Kill a job some seconds after its first step, with its children; tell whether it was still running."""
    running = _begun(job, folder)
    try:
        running.wait(after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return True


def _write_observer(scratch: Path) -> None:
    """Write a plugin, as if installed, that notes every step that a job reports."""
    (scratch / "kill_observer.py").write_text(_OBSERVER)
    folder = scratch / "kill_observer-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: kill-observer\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[sane_plugins]\nkill_observer = kill_observer\n")


def _told(folder: Path, job: str) -> list[int]:
    """Return what the observer noted of a job."""
    path = folder / "observed"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    parts = [line.rstrip("\n").split("\t") for line in lines if line.endswith("\n")]
    return [int(done) for name, done in parts if name == job]


def _digest(job: Job, folder: Path) -> str:
    """Return what the files of a finished job hold, in short."""
    output = folder / job.output
    found = hashlib.sha256()
    for path in sorted(output.iterdir()) if output.is_dir() else [output]:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| job | kills | runs they fell on | most steps lost by a kill (a step under way) | the end equals an undisturbed run's |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['job']} | {r['kills']} | {r['runs']} | {r['most_lost']} ({r['under_way']}) "
        f"| {'byte by byte' if r['equal'] else 'NO'} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
