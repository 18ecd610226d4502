"""The report as one HTML page that needs nothing else: its style, its script and its map are in it.

The page is a jinja2 template, which escapes every value and makes it visible; this module computes what it
shows. Its policy lets no script run but its own, which sorts the table.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files

from markupsafe import Markup

from sane_plugins.display import page_renderer
from sane_plugins.health import Finding
from sane_plugins.properties import (
    SURE,
    UNLIKE,
    AnyEstimate,
    CategoryEstimate,
    Rank,
    estimate_text,
    is_withheld,
)
from sane_plugins.zoo_report.drawn_map import DrawnMap, family_colors
from sane_plugins.zoo_report.network_row import NetworkRow
from sane_plugins.zoo_report.relatives import Relatives
from sane_plugins.zoo_report.zoo_report import ZooReport

_PACKAGE = "sane_plugins.zoo_report"
_MOST_NOTES = 200
_WITHOUT = {
    "read": "cannot be read",
    "check": "cannot be read",
    "predict": "nothing is predicted",
    "fingerprint": "no relatives are looked for",
}


def html_page(report: ZooReport) -> str:
    """Return the page; links in it lead to places in it."""
    script = (files(_PACKAGE) / "sort_table.js").read_text(encoding="utf-8").strip()
    digest = b64encode(sha256(script.encode()).digest()).decode()
    numbers = {row.name: i for i, row in enumerate(report.rows)}
    short = {row.name: short_name(row.name, report.source) for row in report.rows}
    notes = [(row.name, x) for row in report.rows for x in _notes(row)]
    return _renderer()(
        source=report.source,
        rows=report.rows,
        total=len(report.rows),
        best=report.best,
        best_value=_plain(report.best.value),
        best_interval=_interval(report.best.interval),
        best_probability=_percent(report.best.probability),
        best_is_sure=(report.best.probability or 0) >= SURE,
        best_same=report.relatives.same_as(report.best.name),
        broken=[row for row in report.rows if row.is_broken],
        failures=[(row.name, *x) for row in report.rows for x in _failures(row)],
        unreadable=[row for row in report.rows if row.health is None],
        duplicates=report.relatives.duplicates,
        children=report.relatives.children,
        trees=[[*_branches(report.relatives, i)] for i in range(len(report.relatives.families))],
        notes=notes[:_MOST_NOTES],
        notes_left_out=len(notes) - _MOST_NOTES,
        table=_Table.of(report, short),
        map=DrawnMap.of(report),
        map_share=_percent(report.map.share),
        colors=family_colors(report.relatives),
        number=numbers,
        short=short,
        unlike=UNLIKE,
        force=report.force,
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def short_name(name: str, source: str) -> str:
    """Return a network's name within the folder that the page is about."""
    return name.removeprefix(f"{source.rstrip('/')}/") or name


def _failures(row: NetworkRow) -> Iterator[tuple[str, str]]:
    """Yield what could not be done, and why; all that failed for one reason in one."""
    for error in dict.fromkeys(row.errors.values()):
        steps = [_WITHOUT[step] for step, text in row.errors.items() if text == error]
        yield ", ".join(steps), error


def _notes(row: NetworkRow) -> Iterator[Finding]:
    """Yield what was found and is no fault."""
    if row.health is not None:
        yield from (x for x in row.health.findings if x not in row.health.faults)


@dataclass(frozen=True)
class _Cell:
    """A cell: its text, what it is sorted by (empty: last), and whether its number is not to be relied on."""

    text: str
    key: str | float = ""
    beside: str = ""
    is_doubtful: bool = False


@dataclass(frozen=True)
class _Column:
    title: str
    is_number: bool = False
    beside: str = ""


@dataclass(frozen=True)
class _Table:
    """The table of all networks: columns after the network's name, and a row of cells per network."""

    columns: tuple[_Column, ...]
    rows: tuple[tuple[NetworkRow, tuple[_Cell, ...]], ...]
    coverages: tuple[str, ...]
    has_doubtful: bool
    has_initial: bool

    @classmethod
    def of(cls, report: ZooReport, short: dict[str, str]) -> _Table:
        """Fill the table: verdict, what is predicted, relatives, parameters, what was recorded."""
        parents = {x.name: x.parent for x in report.relatives.children}
        predicted = [*dict.fromkeys(name for row in report.rows for name in row.predictions)]
        measured = [*dict.fromkeys(name for row in report.rows for name in row.measured)]
        rows = []
        for row in report.rows:
            told = [f"same as {short.get(x, x)}" for x in report.relatives.same_as(row.name)]
            if row.name in parents:
                told.append(f"from {short.get(parents[row.name], parents[row.name])}")
            cells = [
                _Cell(row.verdict, row.verdict),
                *(
                    _predicted(
                        row.predictions.get(name), report.force, report.ranks[name].get(row.name)
                    )
                    for name in predicted
                ),
                _Cell("; ".join(told), "; ".join(told)),
                _Cell(f"{row.parameters:,}", row.parameters) if row.parameters else _Cell(""),
                *(_measured(row.measured.get(name)) for name in measured),
            ]
            rows.append((row, tuple(cells)))
        estimates = [x for row in report.rows for x in row.predictions.values()]
        shown = [x for x in estimates if not is_withheld(x, report.force)]
        return cls(
            (
                _Column("health"),
                *(_Column(name, _is_numeric(name, report.rows), "predicted") for name in predicted),
                _Column("relatives"),
                _Column("parameters", is_number=True),
                *(_Column(name, _is_measure(name, report.rows), "recorded") for name in measured),
            ),
            tuple(rows),
            tuple(f"{x:.0%}" for x in sorted({x.coverage for x in shown})),
            not all(x.in_distribution for x in estimates),
            any(x.caveat for x in shown),
        )


def _is_numeric(name: str, rows: Sequence[NetworkRow]) -> bool:
    found = [row.predictions[name] for row in rows if name in row.predictions]
    return not any(isinstance(x, CategoryEstimate) for x in found)


def _is_measure(name: str, rows: Sequence[NetworkRow]) -> bool:
    found = [row.measured[name] for row in rows if name in row.measured]
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in found)


def _predicted(estimate: AnyEstimate | None, force: bool, rank: Rank | None) -> _Cell:
    if estimate is None:
        return _Cell("")
    is_doubtful = not estimate.in_distribution
    if is_withheld(estimate, force):
        text = estimate_text(estimate, rank=rank) if rank else ""
        return _Cell("", beside=text, is_doubtful=True)
    if isinstance(estimate, CategoryEstimate):
        text = f"{estimate.value} {estimate.probabilities[estimate.value]:.0%}"
        others = ", ".join(estimate.set) if len(estimate.set) > 1 else ""
        return _Cell(text, estimate.value, others, is_doubtful)
    return _Cell(_plain(estimate.value), estimate.value, _interval(estimate.interval), is_doubtful)


def _measured(value: object) -> _Cell:
    if value is None:
        return _Cell("")
    if isinstance(value, float):
        return _Cell(_plain(value), value if math.isfinite(value) else "")
    return _Cell(str(value), value if isinstance(value, int) else str(value))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"


def _percent(share: float | None) -> str:
    """Return a share in percent; no more than 99 % is said of what is estimated."""
    return "" if share is None else f"{share:.0%}" if share < 0.99 else "over 99%"


@dataclass(frozen=True)
class _Branch:
    """A line of a family's tree: how deep it stands, and how it relates to the one that it stands below."""

    name: str
    depth: int
    how: str


def _branches(relatives: Relatives, family: int) -> Iterator[_Branch]:
    """Yield the members of a family, each below its parent."""
    members = {member.name: member for member in relatives.families[family].members}
    children: dict[str, list[str]] = {}
    for member in members.values():
        children.setdefault(member.parent, []).append(member.name)
    waiting = [(name, 0) for name in reversed(children.get("", []))]
    while waiting:
        name, depth = waiting.pop()
        relationship = members[name].relationship
        how = ""
        if relationship is not None:
            how = (
                "the same" if relationship.is_same else f"similarity {relationship.similarity:.3f}"
            )
        yield _Branch(name, depth, how)
        waiting += [(child, depth + 1) for child in reversed(children.get(name, []))]


@lru_cache(maxsize=1)
def _renderer() -> Callable[..., str]:
    return page_renderer(_PACKAGE, "page.html.jinja")
