"""`sane-plugins zoo show`: networks, architectures and ranges of properties of a zoo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from sane_plugins import zoo
from sane_plugins.cli.console import command_options, print_json, print_table

_MAX_VALUES = 12  # listed per property
_ARCHITECTURE_COLUMNS = ("built by", "parameters", "tensors", "first", "checkpoints")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@command_options
def show(folder: Path, as_json: bool) -> None:
    """Show how many networks a zoo holds, of which architectures, and the range of every property."""
    print_zoo(zoo.Zoo.open(folder), as_json)


def print_zoo(shown: zoo.Zoo, as_json: bool) -> None:
    """Print tables of a zoo's counts, architectures and properties, or these and all names as JSON."""
    ranges, architectures = _ranges(shown), _architectures(shown)
    finite = Counter(entry.properties.get("finite") for entry in shown.entries)
    counts: dict[str, Any] = {
        "networks": len(shown.networks),
        "checkpoints": len(shown),
        "architectures": architectures,
        "finite": finite[True],
        "not_finite": finite[False],
        "finite_unknown": finite[None],
        "without_factory": sum(not entry.factory for entry in shown.entries),
    }
    if as_json:
        networks = [{"network": n, "checkpoints": c} for n, c in _checkpoints(shown).items()]
        print_json({"name": shown.name, **counts, "properties": ranges, "list": networks})
        return
    rows = [(name.replace("_", " "), counts[name]) for name in counts if name != "architectures"]
    print_table(shown.name, ("", "count"), rows)
    print_table(
        "architectures", _ARCHITECTURE_COLUMNS, [tuple(row.values()) for row in architectures]
    )
    print_table("properties", ("property", "values"), list(ranges.items()))


def _architectures(shown: zoo.Zoo) -> list[dict[str, Any]]:
    """Describe each set of shapes, the commonest first; those of zoos of version 1 by their factories."""
    counts = Counter((e.form, str(e.factory.get("name", ""))) for e in shown.entries)
    architectures = []
    for (name, factory), count in counts.most_common():
        form = shown.forms.get(name)
        first = f"{form.tensors[0][0]} {'x'.join(map(str, form.tensors[0][2]))}" if form else ""
        architectures.append(
            {
                "factory": factory or "unknown",
                "parameters": form.parameters if form else "unknown",
                "tensors": len(form.tensors) if form else "unknown",
                "first": first or "unknown",
                "checkpoints": count,
            }
        )
    return architectures


def _checkpoints(shown: zoo.Zoo) -> dict[str, list[str]]:
    """Return the checkpoints of each network."""
    checkpoints: dict[str, list[str]] = {}
    for entry in shown.entries:
        checkpoints.setdefault(entry.network, []).append(entry.checkpoint)
    return checkpoints


def _ranges(shown: zoo.Zoo) -> dict[str, str]:
    """Return the range of every numeric property, and the counts of every other's values."""
    ranges = {}
    for name in sorted({key for entry in shown.entries for key in entry.properties}):
        values = [e.properties[name] for e in shown.entries if name in e.properties]
        if all(isinstance(v, float | int) and not isinstance(v, bool) for v in values):
            ranges[name] = f"{min(map(float, values)):.4g} to {max(map(float, values)):.4g}"
        else:
            ranges[name] = _value_counts(Counter(map(str, values)))
    return ranges


def _value_counts(counts: Counter[str]) -> str:
    listed = ", ".join(f"{value} ({count})" for value, count in counts.most_common(_MAX_VALUES))
    rest = len(counts) - _MAX_VALUES
    return listed if rest <= 0 else f"{listed}, and {rest} more"
