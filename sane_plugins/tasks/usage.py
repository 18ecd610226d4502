"""What it takes to use a network that was made for a task: the classes, and how images are prepared.

It goes into the files that are written, as plain data that anyone can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sane_plugins.arguments import from_plain
from sane_plugins.tasks.task import Task

_DIGITS = 6  # of a mean or deviation
_MOST_SHOWN = 20  # names of classes
_COLOURS = {1: "grey", 3: "RGB"}
_RESIZE = "bilinear, antialiased, to this height and width without cropping"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The classes in the order of a network's outputs, and how its images are prepared.

    An image is resized to `size` (height, width), its pixels divided by `pixel_unit`; then `mean` is
    subtracted and the result divided by `deviation`, of each channel.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    colours: str
    resize: str
    pixel_unit: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, task: Task) -> Usage:
        """Return what a task's images and classes are."""
        return cls(
            classes=task.classes,
            size=task.size,
            channels=task.channels,
            colours=_COLOURS.get(task.channels, f"{task.channels} channels"),
            resize=_RESIZE,
            pixel_unit=_rounded(task.pixel_unit),
            mean=tuple(map(_rounded, task.pixel_mean)),
            deviation=tuple(map(_rounded, task.pixel_deviation)),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Usage | None:
        """Read what `to_metadata` wrote; None where there is nothing. Raises `ArgumentTypeError`."""
        if "preparation" not in metadata:
            return None
        stored = from_plain(Mapping, metadata["preparation"], "preparation")
        usage: Usage = from_plain(
            cls, {**stored, "classes": metadata.get("classes")}, "preparation"
        )
        return usage

    def to_metadata(self) -> dict[str, Any]:
        """Return the entries `classes` and `preparation` of a file's metadata."""
        record = asdict(self)
        return {"classes": list(record.pop("classes")), "preparation": record}

    def lines(self) -> list[str]:
        """Return it as two lines of text."""
        few = ", ".join(self.classes[:_MOST_SHOWN])
        more = len(self.classes) - _MOST_SHOWN
        height, width = self.size
        return [
            f"Classes, in the order of the outputs: {few}{f' and {more:,} more' if more > 0 else ''}.",
            f"Images: {self.colours}, {height}x{width} ({self.resize}), divided by {self.pixel_unit:g},"
            f" less mean {_numbers(self.mean)}, divided by deviation {_numbers(self.deviation)}.",
        ]


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _numbers(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{x:.4g}" for x in numbers)
