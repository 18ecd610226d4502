"""The report of an initialisation: one self-contained HTML page, with its plots as SVG.

The page is a jinja2 template, which escapes every value and makes it visible; this module computes what
it shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from markupsafe import Markup, escape

from sane_plugins.display import page_renderer
from sane_plugins.errors import visible
from sane_plugins.initialize.kinds import CandidateScore, Kind, Label, Origin
from sane_plugins.initialize.outcome.result import Initialization
from sane_plugins.weights import WeightGraph

_COLORS: Mapping[Label, str] = {
    Kind.SANE: "#1f77b4",
    Kind.PROMPT: "#2ca02c",
    Kind.MEAN_OF_PROMPTS: "#8c564b",
    Kind.STRUCTURED: "#17becf",
    Origin.STRUCTURED: "#17becf",
    Kind.TRANSFER: "#9467bd",
    Origin.TRANSFERRED: "#9467bd",
    Kind.DEFAULT: "#7f7f7f",
    Kind.DEFAULT_FITTED: "#ff7f0e",
    Origin.MEASURED: "#bcbd22",
    Origin.FITTED: "#d62728",
}
_MAX_LAYERS = 120
_Points = Sequence[tuple[float, float]]


def html_report(
    result: Initialization, verdict: str, notes: Sequence[str], snippet: str = ""
) -> str:
    """Return the report as HTML, without links, scripts or anything from elsewhere.

    `snippet` is code that uses the file that was written, where there is one.
    """
    trained = [row for row in result.rows if row.curve or row.chosen]
    provenance = {k: v for k, v in result.provenance.items() if k != "scores"}
    return _renderer()(
        task=result.provenance["task"]["name"],
        verdict=verdict,
        notes=notes,
        snippet=snippet.splitlines(),
        trained=trained,
        untrained=[row for row in result.rows if row not in trained],
        curves=LearningCurves.of(result.rows),
        bars=OriginBars.of(result.graph, result.origins),
        origins=list(dict.fromkeys(result.origins.values())),
        prompts=result.provenance["prompts"],
        provenance=escape(json.dumps(provenance, indent=1, default=str)),  # ASCII, in many lines
        colors={name.label: color for name, color in _COLORS.items()},
    )


@dataclass(frozen=True)
class CurveGroup:
    """The candidates of one kind: a line each, their mean and their range, as points of SVG."""

    kind: str
    lines: tuple[str, ...]
    mean: str
    range: str


@dataclass(frozen=True)
class Tick:
    """Ticks of both axes at one fraction of their lengths: position in pixels, and labels."""

    x: float
    y: float
    share: str
    epochs: str


@dataclass(frozen=True)
class LearningCurves:
    """Accuracy by epochs of training, a group for each kind. Sizes are in pixels."""

    groups: tuple[CurveGroup, ...]
    ticks: tuple[Tick, ...]
    middle: float
    width: int = 700
    height: int = 340
    left: int = 72
    bottom: int = 298

    @classmethod
    def of(cls, rows: Sequence[CandidateScore]) -> LearningCurves:
        """Lay out the curves of trained candidates; mean and range are over those that reached each epoch."""
        trained = [row for row in rows if row.curve]
        longest = max((row.epochs for row in trained), default=1.0)
        groups = []
        for kind in dict.fromkeys(row.kind for row in trained):
            lines = [
                [*([] if row.before is None else [(0.0, row.before)]), *row.curve]
                for row in trained
                if row.kind is kind
            ]
            groups.append(_group(kind, lines, longest))
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        ticks = (
            Tick(_x(s * longest, longest), _y(s), f"{100 * s:.0f} %", f"{s * longest:.2g}")
            for s in shares
        )
        return cls(tuple(groups), tuple(ticks), _y(0.5))


def _group(kind: Kind, lines: Sequence[_Points], longest: float) -> CurveGroup:
    epochs = sorted({x for line in lines for x, _ in line})
    scores = [(x, [y for line in lines for epoch, y in line if epoch == x]) for x in epochs]
    upper, lower = [(x, max(ys)) for x, ys in scores], [(x, min(ys)) for x, ys in scores]
    return CurveGroup(
        kind.label,
        tuple(_path(line, longest) for line in lines),
        _path([(x, sum(ys) / len(ys)) for x, ys in scores], longest),
        _path([*upper, *reversed(lower)], longest),
    )


def _path(points: _Points, longest: float) -> Markup:
    """Return points as markup: there may be more of them than a name may have characters."""
    return Markup(" ".join(f"{_x(x, longest):.1f},{_y(y):.1f}" for x, y in points))


def _x(epochs: float, longest: float) -> float:
    left, right = LearningCurves.left, LearningCurves.width - 16
    return left + (right - left) * epochs / longest


def _y(accuracy: float) -> float:
    top, bottom = 12, LearningCurves.bottom
    return top + (bottom - top) * (1 - accuracy)


@dataclass(frozen=True)
class BarPart:
    """The part of a layer's bar whose values come from one origin."""

    origin: str
    size: int
    x: float
    width: float


@dataclass(frozen=True)
class Bar:
    """The bar of a layer; `name` is the end of the layer's name, which fits the picture."""

    layer: str
    name: str
    total: int
    top: int
    parts: tuple[BarPart, ...]


@dataclass(frozen=True)
class OriginBars:
    """A bar for each layer, its parts as wide as the share of the values from each origin; in pixels."""

    rows: tuple[Bar, ...]
    left_out: int
    height: int
    width: int = 700
    left: int = 215
    right: int = 610
    row: int = 20

    @classmethod
    def of(cls, graph: WeightGraph, origins: Mapping[str, Origin]) -> OriginBars:
        """Lay out the bars of the first layers with weights."""
        layers = [layer for layer in graph.layers if layer.params]
        bars = []
        for i, layer in enumerate(layers[:_MAX_LAYERS]):
            sizes: dict[Origin, int] = {}
            for p in layer.params:
                origin = origins.get(p.key, Origin.DEFAULT)
                sizes[origin] = sizes.get(origin, 0) + p.size
            parts = tuple(_parts(sizes))
            total = sum(sizes.values())
            bars.append(Bar(layer.name, visible(layer.name)[-26:], total, i * cls.row, parts))
        return cls(tuple(bars), len(layers) - _MAX_LAYERS, cls.row * len(bars) + 4)


def _parts(sizes: Mapping[Origin, int]) -> Iterator[BarPart]:
    total, x = sum(sizes.values()), float(OriginBars.left)
    for origin, size in sizes.items():
        width = (OriginBars.right - OriginBars.left) * size / total
        yield BarPart(origin.label, size, x, width)
        x += width


@lru_cache(maxsize=1)
def _renderer() -> Callable[..., str]:
    return page_renderer("sane_plugins.initialize.outcome", "report.html.jinja", percent=_percent)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
