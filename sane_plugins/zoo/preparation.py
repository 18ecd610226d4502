"""How images are prepared for a network: its mean and deviation per channel.

A zoo keeps it as text beside what was measured, `0.1307/0.3081` or `0.49,0.48,0.45/0.25,0.24,0.26`: means, a
stroke, deviations, of pixels between 0 (black) and 1 (white).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from sane_plugins.errors import SaneError, UsageError
from sane_plugins.formats import read_metadata
from sane_plugins.tasks import Task, Usage

PROPERTY = "preparation"
TASK, RECORDED = "task", "recorded"
GUESSED = " (guessed)"  # follows what only the task told
_DIGITS = 6  # of a mean or deviation
_NAMED: Mapping[str, str] = {
    "imagenet": "0.485,0.456,0.406/0.229,0.224,0.225",
    "none": "0/1",
}


@dataclass(frozen=True)
class PixelPreparation:
    """Means and deviations, one per channel or one for all, of pixels between 0 and 1."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> PixelPreparation:
        """Read `imagenet`, `none`, or MEAN/DEVIATION. Raises `UsageError` for anything else."""
        mean, _, deviation = _NAMED.get(text, text).partition("/")
        try:
            found = cls(_numbers(mean), _numbers(deviation))
        except ValueError:
            found = cls((), ())
        lengths = {len(found.mean), len(found.deviation)}
        if 0 in lengths or len(lengths) > 1 or min(found.deviation) <= 0:
            raise UsageError(
                f"--normalize {text}",
                "it is no preparation of images",
                f"{TASK}, {RECORDED}, {', '.join(_NAMED)} or MEAN/DEVIATION of pixels from 0 to 1 is needed",
                "write for example --normalize 0.1307/0.3081, with commas between channels",
            )
        return found

    @classmethod
    def of(cls, task: Task) -> PixelPreparation:
        """Return what was done to a task's images."""
        return cls(task.pixel_mean, task.pixel_deviation)

    def __str__(self) -> str:
        return "/".join(
            ",".join(f"{x:.{_DIGITS}g}" for x in row) for row in (self.mean, self.deviation)
        )

    def apply(self, task: Task) -> Task:
        """Return the task with its images prepared so. Raises `UsageError` for another number of channels."""
        if len(self.mean) not in (1, task.channels):
            raise UsageError(
                f"--normalize {self}",
                f"it is for {len(self.mean)} channels",
                f"the images of {task.name} have {task.channels}",
                "give one number for all channels, or one for each",
            )
        repeat = task.channels // len(self.mean)
        return task.prepared(self.mean * repeat, self.deviation * repeat)


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(x) for x in text.split(","))
    if not all(map(isfinite, numbers)):
        raise ValueError(text)
    return numbers


def recorded(properties: Mapping[str, object]) -> PixelPreparation | None:
    """Return the preparation that a zoo keeps of a network, if it does; what was guessed is none."""
    text = properties.get(PROPERTY)
    is_known = isinstance(text, str) and not text.endswith(GUESSED)
    return PixelPreparation.parse(str(text)) if is_known else None


def stored_preparation(path: Path) -> dict[str, str]:
    """Return the property that says how images are prepared, where the file of a network tells."""
    try:
        usage = Usage.from_metadata(read_metadata(path))
    except SaneError:  # reading the network tells what is wrong with the file
        return {}
    return {} if usage is None else {PROPERTY: str(PixelPreparation(usage.mean, usage.deviation))}
