"""Our compact photo networks, whose widths and depths are free: the shapes say which one it may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from sane_plugins.recognition.signature import Shapes

Factory = Mapping[str, Any]
_BEHIND_POOL = 2  # pooling and flattening stand before what reads their means


def photo_factories(shapes: Shapes) -> Iterator[Factory]:
    """Yield names and arguments of photo networks that may have these shapes."""
    stem = shapes.get("0.0.weight", ())
    if len(stem) != 4:
        return
    for name, first, last in (
        ("small_resnet", "first.0.weight", "second.0.weight"),
        ("small_mobilenet", "block.0.0.weight", "block.{}.0.weight"),
        ("small_convnext", "depthwise.weight", "project.weight"),
    ):
        stages = _stages(shapes, first)
        if not stages:
            continue
        head = len(stages) + 1 + _BEHIND_POOL + (name != "small_resnet")
        classifier = shapes.get(f"{head}.weight", ())
        if len(classifier) != 2:
            continue
        widths = tuple(
            _width(shapes, f"{stage}.{members[0]}.{last}")
            for stage, members in enumerate(stages, 1)
        )
        counts = {"channels_in": stem[1], "classes": classifier[0]}
        depths = tuple(len(members) for members in stages)
        own = {"features": classifier[1]} if name == "small_mobilenet" else {}
        yield {"name": name, **counts, "widths": widths, "blocks": depths, **own}


def _stages(shapes: Shapes, first: str) -> list[list[int]]:
    """Return the places of the members of each stage, which all have a tensor of the name `first`."""
    stages: list[list[int]] = []
    for stage in count(1):
        start = 0 if f"{stage}.0.{first}" in shapes else 2  # behind what halves the grid
        members = []
        for member in count(start):
            if f"{stage}.{member}.{first}" not in shapes:
                break
            members.append(member)
        if not members:
            return stages
        stages.append(members)
    return stages


def _width(shapes: Shapes, name: str) -> int:
    """Return the channels of a member's last layer; `{}` stands for its place in the member."""
    names = (name.format(place) for place in (3, 2))  # without an expansion it comes earlier
    found = next((shapes[x] for x in names if x in shapes), (0,))
    return found[0] if found else 0
