"""`sane-plugins heads show`: what a file of property heads holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sane_plugins import properties
from sane_plugins.cli.console import command_options, print_json, print_table

_COLUMNS = (
    "property",
    "what",
    "features",
    "channel order",
    "score",
    "cross-validated",
    "fitted on",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@command_options
def show(file: Path, as_json: bool) -> None:
    """Show what a file of heads predicts, what each reads, and how well each did."""
    print_heads(list(properties.load_heads(file).values()), as_json)


def print_heads(heads: Sequence[properties.AnyHead], as_json: bool) -> None:
    """Print a table of property heads, or the same and all scores as JSON."""
    records = [_record(head) for head in heads]
    if as_json:
        print_json(records)
        return
    rows = [
        (
            x["property"],
            ", ".join(x.get("classes", ["number"])),
            x["features"],
            ", ".join(f"{k}: {v}" for k, v in x["invariance"].items()),
            x["score"],
            ", ".join(f"{k} {v:.3f}" for k, v in best_scores(x["scores"]).items()),
            ", ".join(x["zoos"]),
        )
        for x in records
    ]
    print_table("property heads", _COLUMNS, rows)


def best_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the best cross-validated score of each set of features, given those of features/regressor."""
    best: dict[str, float] = {}
    for name, score in scores.items():
        features = name.partition("/")[0]
        best[features] = max(score, best.get(features, score))
    return best


def _record(head: properties.AnyHead) -> dict[str, Any]:
    record: dict[str, Any] = {
        "property": head.property,
        "features": head.features,
        "invariance": head.invariance,
        "score": head.score,
        "scores": dict(head.scores),
        "coverage": head.coverage,
        "sane": head.sane,
        "zoos": [*getattr(head, "zoos", ())],
    }
    return record | ({"classes": list(head.classes)} if hasattr(head, "classes") else {})
