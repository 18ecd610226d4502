"""The report of an initialisation: one page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from sane_plugins.initialize.charts import curves, layers, legend
from sane_plugins.initialize.options import CandidateScore
from sane_plugins.initialize.pipeline import Initialization

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --pale: #f5f5f5; --rule: #ddd;
  --soft: #444; --mark: #e8f1fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --paper: #181818; --pale: #262626;
  --rule: #444; --soft: #c4c4c4; --mark: #1d3347 } }
body { font: 15px/1.5 sans-serif; color: var(--ink); background: var(--paper);
  max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid var(--rule) }
td.number, th.number { text-align: right } td.number { white-space: nowrap }
h1, p, li { overflow-wrap: anywhere } h1 { line-height: 1.2 }
tr.chosen { background: var(--mark); font-weight: bold }
svg { display: block; width: 100%; height: auto; max-width: 46rem; min-width: 38rem }
svg text { font: 13px sans-serif; fill: var(--soft) } svg .grid { stroke: var(--rule) }
.legend span { margin-right: 1rem; white-space: nowrap }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem }
.warnings { border-left: 4px solid #ff7f0e; padding-left: 1rem }
.wide { overflow-x: auto } .wide td:first-child { min-width: 12rem }
summary { cursor: pointer; margin: .7rem 0 }
pre { background: var(--pale); padding: .7rem; overflow-x: auto; font-size: 12px }
@media (max-width: 40rem) { td, th { padding: .2rem .35rem; font-size: 13px }
  .wide td:first-child { min-width: 8rem } }
"""


def html_report(done: Initialization, verdict: str, notes: Sequence[str]) -> str:
    """Return the report as HTML, without links, scripts or anything from elsewhere."""
    told = done.provenance
    kinds = list(dict.fromkeys(row.kind for row in done.rows if row.curve))
    body = [
        f"<h1>Initialization for {escape(str(told['task']['name']))}</h1>",
        f"<p><b>{escape(verdict)}</b></p>",
        '<div class="warnings"><h2>Notes and warnings</h2><ul>',
        *(f"<li>{escape(text)}.</li>" for text in notes),
        "</ul></div>",
        "<h2>Candidates</h2><p>Accuracy on held-out training images.</p>",
        _candidates(done),
        "<h2>Learning curves</h2>",
        legend(kinds),
        curves(done.rows),
        "<p>Thick: the mean of the candidates of a kind that came so far; shaded: their range.</p>",
        "<h2>Where the weights came from</h2>",
        legend(list(dict.fromkeys(done.origins.values()))),
        layers(done.graph, done.origins),
        "<h2>Prompts</h2>",
        _prompts(done),
        "<h2>Provenance</h2><details open><summary>All that it takes to make the weights again</summary>",
        f"<pre>{escape(_provenance(done))}</pre></details>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>sane-init report</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _candidates(done: Initialization) -> str:
    """Return the table of those that were trained, and folded away that of all others."""
    trained = [row for row in done.rows if row.curve or row.chosen]
    others = [row for row in done.rows if row not in trained]
    if not others:
        return _table(trained)
    summary = f"<summary>{len(others)} more, scored before training only</summary>"
    return f"{_table(trained)}<details>{summary}{_table(others)}</details>"


def _table(shown: Sequence[CandidateScore]) -> str:
    rows = []
    for row in shown:
        far = f"{row.curve[-1][0]:.2f}" if row.curve else "0"
        last = row.curve[-1][1] if row.curve else row.before
        cells = "".join(
            f'<td class="number">{x}</td>' for x in (_percent(row.before), far, _percent(last))
        )
        mark = ' class="chosen"' if row.chosen else ""
        end = "chosen" if row.chosen else ""
        rows.append(f"<tr{mark}><td>{escape(row.name)}</td>{cells}<td>{end}</td></tr>")
    head = "".join(f'<th class="number">{x}</th>' for x in ("before", "epochs", "accuracy then"))
    table = f"<table><tr><th>initialisation</th>{head}<th></th></tr>{''.join(rows)}</table>"
    return f'<div class="wide">{table}</div>'


def _prompts(done: Initialization) -> str:
    rows = "".join(
        f"<tr><td>{escape(p['source'])}</td><td><code>{p['hash'][:12]}</code></td>"
        f"<td>{escape(p['licence'])}</td></tr>"
        for p in done.provenance["prompts"]
    )
    table = f"<table><tr><th>network</th><th>hash</th><th>licence</th></tr>{rows}</table>"
    return f'<div class="wide">{table}</div>'


def _provenance(done: Initialization) -> str:
    return json.dumps(
        {k: v for k, v in done.provenance.items() if k != "scores"}, indent=1, default=str
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
