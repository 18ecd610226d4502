"""Run a command as a user does, in a process of its own, and measure what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SECONDS, GIBIBYTES = 10.0, 1.0
# By the clock, for what hangs; the limit counts processor time, which a busy machine does not stretch.
_HANG = 1200.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, texts, processor seconds and the largest memory in GiB."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    gibibytes: float

    def require_small(self, seconds: float = SECONDS, gibibytes: float = GIBIBYTES) -> Outcome:
        """Return this outcome; raise `AssertionError` if it took more time or memory."""
        assert self.seconds <= seconds, f"{self.seconds:.1f} s\n{self.stdout}\n{self.stderr}"
        assert self.gibibytes <= gibibytes, f"{self.gibibytes:.2f} GiB\n{self.stderr}"
        return self

    def require_sentence(self, code: int = 1) -> str:
        """Return the one line on stderr that begins with `Error:`; fail for anything else."""
        assert self.code == code, (self.code, self.stdout, self.stderr)
        assert "Traceback" not in self.stderr, self.stderr
        assert "unexpected" not in self.stderr, self.stderr
        (sentence,) = [line for line in self.stderr.splitlines() if line.startswith("Error:")]
        return sentence


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> Outcome:
    """Run `python -m sane_plugins` with arguments; see `run_python`."""
    return run_python("-m", "sane_plugins", *arguments, cwd=cwd, **environment)


def run_python(*arguments: object, cwd: Path | None = None, **environment: str) -> Outcome:
    """Run this Python with arguments, without a terminal; return how it ended and what it took."""
    command = [sys.executable, *map(str, arguments)]
    # A small process in between: Linux counts the memory of the process that starts another as the other's.
    with tempfile.NamedTemporaryFile() as report:
        process = subprocess.run(
            [sys.executable, "-I", "-S", __file__, report.name, *command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_HANG + 10,
        )
        took = json.loads(Path(report.name).read_text())
    texts = (text.decode(errors="backslashreplace") for text in (process.stdout, process.stderr))
    return Outcome(took["code"], *texts, took["seconds"], took["gibibytes"])


def _measure(report: str, command: list[str]) -> None:
    """Run a command and write its exit code and what it took as JSON."""
    import resource

    try:
        code = subprocess.call(command, timeout=_HANG)
    except subprocess.TimeoutExpired:
        code = -9  # as if killed: `call` has done so
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    per_gibibyte = 2**30 if sys.platform == "darwin" else 2**20
    took = {
        "code": code,
        "seconds": usage.ru_utime + usage.ru_stime,
        "gibibytes": usage.ru_maxrss / per_gibibyte,
    }
    Path(report).write_text(json.dumps(took))


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2:])
