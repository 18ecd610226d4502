"""A zoo whose training is killed at random moments, and resumed, has the bytes of an unbroken one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from zoo_training.test_zoo_training import small, some_images
from sane_plugins.zoo_training.state_saver import ZooStateSaver
from sane_plugins.zoo_training.zoo_trainer import train_zoo
save, saved = ZooStateSaver.save, []
def save_and_wait(self):
    save(self)
    saved.append(self)
    if len(saved) == {saves}:  # so that it is killed before its end, however busy the machine is
        time.sleep(600)
ZooStateSaver.save = save_and_wait
if __name__ == "__main__":
    print("begun", flush=True)
    train_zoo(some_images(number=96), small(networks=8, epochs=4, keep=(0, 2, 4)), Path({out!r}), resume=True,
              save_every=1, processes={processes})
"""


def start(folder: Path, out: Path, processes: int, saves: int = 0) -> subprocess.Popen:
    """Start a training; each of its processes waits for ever after so many saves, unless they are 0."""
    program, tests = folder / "program.py", str(Path(__file__).parents[1])
    program.write_text(PROGRAM.format(tests=tests, out=str(out), processes=processes, saves=saves))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, text=True
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_training_goes_on_as_if_nothing_had_been(processes, tmp_path):
    with start(tmp_path, tmp_path / "whole", 1) as unbroken:
        assert unbroken.wait() == 0
    out, state = tmp_path / "cut", tmp_path / "cut.state"
    moments = random.Random(processes)
    for _ in range(3):
        with start(tmp_path, out, processes, saves=3) as run:
            steps = _written(state)
            while run.poll() is None and _written(state) <= steps:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            run.kill()
        assert run.returncode == -signal.SIGKILL
    with start(tmp_path, out, processes) as last:
        assert last.wait() == 0
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert not state.exists()


def _written(state: Path) -> float:
    """Return when the newest state was written."""
    return max((path.stat().st_mtime for path in state.glob("group-*.safetensors")), default=0.0)
