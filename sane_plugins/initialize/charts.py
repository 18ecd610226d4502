"""Pictures of an initialisation as inline SVG: learning curves with spread, and where weights came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from sane_plugins.initialize.candidates import DEFAULT, FITTED, MEASURED
from sane_plugins.initialize.options import CandidateScore
from sane_plugins.weights import WeightGraph

COLORS = {
    "sane": "#1f77b4",
    "prompt": "#2ca02c",
    "mean of prompts": "#8c564b",
    "default": "#7f7f7f",
    "default, classifier fitted": "#ff7f0e",
    MEASURED: "#bcbd22",
    FITTED: "#d62728",
}
_WIDTH, _HEIGHT = 700, 340
_LEFT, _TOP, _BELOW = 72, 12, 42
_ROW, _NAME, _BAR = 20, 215, 395
_MOST = 120


def curves(rows: Sequence[CandidateScore]) -> str:
    """Draw accuracy by epochs: a thin line for each candidate, the mean and range of each kind."""
    rows = [row for row in rows if row.curve]
    if not rows:
        return "<p>Nothing was trained in the time that was given.</p>"
    right = max(row.curve[-1][0] for row in rows)
    parts = [*_axes(right)]
    for kind in dict.fromkeys(row.kind for row in rows):
        lines = [_points(row) for row in rows if row.kind == kind]
        told = f"<title>{escape(kind)}: {len(lines)} trained</title>"
        parts += [f"<g>{told}", *_kind(lines, COLORS[kind], right), "</g>"]
    return _svg(_WIDTH, _HEIGHT, parts, "accuracy on held-out images by epochs of training")


def layers(graph: WeightGraph, origins: Mapping[str, str]) -> str:
    """Draw a bar for each layer, its parts as wide as the share of the values from each origin."""
    shown = [layer for layer in graph.layers if layer.params]
    parts = []
    for i, layer in enumerate(shown[:_MOST]):
        total, at = sum(p.size for p in layer.params), float(_NAME)
        sizes: dict[str, int] = {}
        for p in layer.params:
            origin = origins.get(p.key, DEFAULT)
            sizes[origin] = sizes.get(origin, 0) + p.size
        parts.append(_text(_NAME - 6, i * _ROW + 15, layer.name[-26:], "end"))
        for origin, size in sizes.items():
            wide = _BAR * size / total
            told = f"{layer.name}: {size} of {total} values: {origin}"
            parts.append(
                f'<rect x="{at:.1f}" y="{i * _ROW + 2}" width="{wide:.1f}" height="{_ROW - 4}"'
                f' fill="{COLORS[origin]}"><title>{escape(told)}</title></rect>'
            )
            at += wide
        parts.append(_text(_NAME + _BAR + 6, i * _ROW + 15, f"{total:,}", "start"))
    height = _ROW * min(len(shown), _MOST) + 4
    svg = _svg(_NAME + _BAR + 90, height, parts, "where the values of each layer came from")
    left = len(shown) - _MOST
    return svg + (f"<p>{left} more layers are not drawn.</p>" if left > 0 else "")


def legend(names: Sequence[str]) -> str:
    """Return the colours and what they stand for."""
    return (
        '<p class="legend">'
        + " ".join(
            f'<span><i style="background:{COLORS[name]}"></i>{escape(name)}</span>'
            for name in names
        )
        + "</p>"
    )


def _points(row: CandidateScore) -> list[tuple[float, float]]:
    return [(0.0, row.before), *row.curve]


def _kind(lines: Sequence[list[tuple[float, float]]], color: str, right: float) -> Iterator[str]:
    """Draw candidates of one kind; mean and range at each place over those that came so far."""
    places = sorted({x for line in lines for x, _ in line})
    found = [(x, [y for line in lines for at, y in line if at == x]) for x in places]
    band = [(x, max(ys)) for x, ys in found] + [(x, min(ys)) for x, ys in reversed(found)]
    yield f'<polygon points="{_path(band, right)}" fill="{color}" opacity="0.15"/>'
    for line in lines:
        yield _line(line, color, right, 0.8, 0.5)
    yield _line([(x, sum(ys) / len(ys)) for x, ys in found], color, right, 2.2, 1.0)


def _axes(right: float) -> Iterator[str]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield _text(_LEFT - 6, y + 4, f"{100 * share:.0f} %", "end")
        yield _text(
            _x(share * right, right), _HEIGHT - _BELOW + 18, f"{share * right:.2g}", "middle"
        )
    yield _text(_WIDTH / 2, _HEIGHT - 4, "epochs of training", "middle")
    middle = _y(0.5)
    label = _text(16, middle, "accuracy, held out", "middle")
    yield f'<g transform="rotate(-90 16 {middle:.1f})">{label}</g>'


def _line(
    points: Sequence[tuple[float, float]], color: str, right: float, width: float, opacity: float
) -> str:
    return (
        f'<polyline points="{_path(points, right)}" fill="none" stroke="{color}"'
        f' stroke-width="{width}" opacity="{opacity}"/>'
    )


def _path(points: Sequence[tuple[float, float]], right: float) -> str:
    return " ".join(f"{_x(x, right):.1f},{_y(y):.1f}" for x, y in points)


def _x(value: float, right: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 16) * value / right


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BELOW) * (1 - share)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{escape(label)}"><title>{escape(label)}</title>{"".join(parts)}</svg></div>'
    )
