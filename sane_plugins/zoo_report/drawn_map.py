"""The map as it is drawn: points in pixels, with the lines between parents and children."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sane_plugins.zoo_report.relatives import Relatives
from sane_plugins.zoo_report.zoo_report import ZooReport

_COLORED = 6  # families, the largest; the page has as many colours
_WIDTH, _HEIGHT, _MARGIN = 720, 440, 24


def family_colors(relatives: Relatives) -> dict[str, int]:
    """Return the number of the colour of each network in one of the largest families."""
    return {
        member.name: i
        for i, family in enumerate(relatives.families[:_COLORED])
        for member in family.members
    }


@dataclass(frozen=True)
class MapPoint:
    """A network on the map."""

    name: str
    x: float
    y: float
    mark: Literal["best", "broken", "plain"]


@dataclass(frozen=True)
class MapLine:
    """From a parent to its child."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class DrawnMap:
    """Points and lines; the best network is the last point, so that it lies on top. Sizes are in pixels."""

    points: tuple[MapPoint, ...]
    lines: tuple[MapLine, ...]
    width: int = _WIDTH
    height: int = _HEIGHT

    @classmethod
    def of(cls, report: ZooReport) -> DrawnMap:
        """Scale places to the picture, one unit as long in both directions."""
        places = report.map.places
        if not places:
            return cls((), ())
        xs, ys = zip(*places.values(), strict=True)
        scale = min(
            (_WIDTH - 2 * _MARGIN) / max(max(xs) - min(xs), 1e-9),
            (_HEIGHT - 2 * _MARGIN) / max(max(ys) - min(ys), 1e-9),
        )
        middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
        drawn = {
            name: (_WIDTH / 2 + scale * (x - middle[0]), _HEIGHT / 2 - scale * (y - middle[1]))
            for name, (x, y) in places.items()
        }
        broken = {row.name for row in report.rows if row.is_broken}
        points = [
            MapPoint(
                name,
                *place,
                "best" if name == report.best.name else "broken" if name in broken else "plain",
            )
            for name, place in drawn.items()
        ]
        lines = (
            MapLine(*drawn[child.parent], *drawn[child.name]) for child in report.relatives.children
        )
        return cls(tuple(sorted(points, key=lambda x: x.mark == "best")), tuple(lines))
