"""A zoo whose training is killed at random moments, and resumed, has the bytes of an unbroken one."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from zoo_training.test_zoo_training import small, some_images
from sane_plugins.zoo_training.zoo_trainer import train_zoo
if __name__ == "__main__":
    print("begun", flush=True)
    train_zoo(some_images(number=96), small(networks=8, epochs=4, keep=(0, 2, 4)), Path({out!r}), resume=True,
              save_every=1, processes={processes})
"""


def start(folder: Path, out: Path, processes: int) -> subprocess.Popen:
    program = folder / "program.py"
    program.write_text(
        PROGRAM.format(tests=str(Path(__file__).parents[1]), out=str(out), processes=processes)
    )
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
        assert unbroken.wait(240) == 0
    out, state = tmp_path / "cut", tmp_path / "cut.state"
    moments, kills = random.Random(processes), 0
    for _ in range(3):
        with start(tmp_path, out, processes) as run:
            steps = _written(state)
            while run.poll() is None and _written(state) <= steps:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            kills += run.poll() is None
            run.kill()
    assert kills
    with start(tmp_path, out, processes) as last:
        assert last.wait(240) == 0
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert not state.exists()


def _written(state: Path) -> float:
    """Return when the newest state was written."""
    return max((path.stat().st_mtime for path in state.glob("group-*.safetensors")), default=0.0)
