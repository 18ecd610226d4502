"""Training log as JSON Lines, one line per interval, and a plot of its curves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sane_plugins.atomic_files import append_text, write_whole


@dataclass
class TrainingLog:
    """Loss sums since the last line, and the file that lines are appended to.

    The sums are saved with a run's state, so a resumed run writes the same lines except for the seconds.
    """

    path: Path
    every: int
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Return the elapsed training time, excluding interruptions."""
        return self.before + time.perf_counter() - self.started

    def rewind(self, step: int) -> None:
        """Drop lines after the step that the run resumes from, and truncated lines."""
        if not self.path.exists():  # a run that ends before its first line leaves nothing
            return
        kept = [line for line in read_log(self.path) if line["step"] <= step] if step else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.path, lambda partial: partial.write_text(text))

    def add(
        self, step: int, losses: Mapping[str, float], rate: float, is_last: bool
    ) -> dict[str, float] | None:
        """Add a step's losses; return a log line if one is due."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss
        self.count += 1
        if step % self.every and not is_last:
            return None
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return {"step": step, **means, "lr": rate, "seconds": round(self.seconds, 3)}

    def write(self, line: Mapping[str, float]) -> None:
        """Append a line."""
        append_text(self.path, json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the complete lines of a log; empty if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curves(log: Path, plot: Path) -> None:
    """Plot each loss of a log over the steps as a PNG; needs matplotlib."""
    from matplotlib.figure import Figure

    lines = read_log(log)
    names = [n for n in (lines[0] if lines else {}) if n not in ("step", "lr", "seconds")]
    figure = Figure(figsize=(8, 2 + 2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names) + 1, 1, sharex=True, squeeze=False)[:, 0]
    steps = [line["step"] for line in lines]
    for panel, name in zip(panels, [*names, "lr"], strict=True):
        panel.plot(steps, [line[name] for line in lines])
        panel.set_ylabel({"lr": "learning rate"}.get(name, name))
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    write_whole(plot, lambda partial: figure.savefig(partial, format="png", dpi=120))
